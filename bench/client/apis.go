package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc"
	v1beta1 "k8s.io/kms/apis/v1beta1"
	v2 "k8s.io/kms/apis/v2"
)

const version = "v1beta1"

func client(api string, connection *grpc.ClientConn) (plugin, error) {
	switch api {
	case "v1":
		return byV1{v1beta1.NewKeyManagementServiceClient(connection)}, nil
	case "v2":
		return byV2{v2.NewKeyManagementServiceClient(connection)}, nil
	}
	return nil, fmt.Errorf("-api must be v1 or v2, not %q", api)
}

type byV1 struct {
	service v1beta1.KeyManagementServiceClient
}

func (one byV1) ready(ctx context.Context) error {
	_, err := one.service.Version(ctx, &v1beta1.VersionRequest{Version: version},
		grpc.WaitForReady(true))
	return err
}

func (one byV1) encrypt(ctx context.Context, dek []byte) (record, error) {
	answer, err := one.service.Encrypt(ctx,
		&v1beta1.EncryptRequest{Version: version, Plain: dek})
	return record{Dek: dek, Cipher: answer.GetCipher()}, err
}

func (one byV1) decrypt(ctx context.Context, each record) ([]byte, error) {
	answer, err := one.service.Decrypt(ctx,
		&v1beta1.DecryptRequest{Version: version, Cipher: each.Cipher})
	return answer.GetPlain(), err
}

type byV2 struct {
	service v2.KeyManagementServiceClient
}

// ready asks for Status, as the API server does before it encrypts.
func (one byV2) ready(ctx context.Context) error {
	_, err := one.service.Status(ctx, &v2.StatusRequest{}, grpc.WaitForReady(true))
	return err
}

func (one byV2) encrypt(ctx context.Context, dek []byte) (record, error) {
	answer, err := one.service.Encrypt(ctx,
		&v2.EncryptRequest{Plaintext: dek, Uid: "bench"})
	return record{
		Dek:         dek,
		Cipher:      answer.GetCiphertext(),
		KeyID:       answer.GetKeyId(),
		Annotations: answer.GetAnnotations(),
	}, err
}

func (one byV2) decrypt(ctx context.Context, each record) ([]byte, error) {
	answer, err := one.service.Decrypt(ctx, &v2.DecryptRequest{
		Ciphertext:  each.Cipher,
		KeyId:       each.KeyID,
		Annotations: each.Annotations,
		Uid:         "bench",
	})
	return answer.GetPlaintext(), err
}
