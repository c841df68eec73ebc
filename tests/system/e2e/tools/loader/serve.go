package main

import (
	"context"
	"fmt"
	"time"

	"k8s.io/kms/pkg/service"
)

const (
	keyID      = "reference-key"
	annotation = "version.reference.example"
)

// reference is the least that a plugin for KMS v2 does, on Kubernetes' own library.
// It protects nothing.
type reference struct{}

func (reference) Status(context.Context) (*service.StatusResponse, error) {
	return &service.StatusResponse{Version: "v2", Healthz: "ok", KeyID: keyID}, nil
}

func (reference) Encrypt(_ context.Context, _ string, data []byte) (*service.EncryptResponse, error) {
	return &service.EncryptResponse{
		Ciphertext:  turned(data),
		KeyID:       keyID,
		Annotations: map[string][]byte{annotation: []byte("1")},
	}, nil
}

func (reference) Decrypt(_ context.Context, _ string, request *service.DecryptRequest) ([]byte, error) {
	if request.KeyID != keyID || string(request.Annotations[annotation]) != "1" {
		return nil, fmt.Errorf("another key_id or other annotations")
	}
	return turned(request.Ciphertext), nil
}

func turned(data []byte) []byte {
	other := make([]byte, len(data))
	for i, each := range data {
		other[i] = ^each
	}
	return other
}

// serve answers on a socket until it is killed.
func serve(args []string) (any, error) {
	if len(args) != 1 {
		return nil, fmt.Errorf("serve takes one socket")
	}
	return nil, service.NewGRPCService(args[0], 3*time.Second, reference{}).ListenAndServe()
}
