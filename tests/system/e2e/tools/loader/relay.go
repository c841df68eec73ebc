package main

import (
	"fmt"
	"net"
	"path"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
)

// relay passes unary calls on, byte for byte, and counts them by method name.
type relay struct {
	upstream *grpc.ClientConn
	mutex    sync.Mutex
	calls    map[string]int
}

// startRelay serves on the socket listen what the socket plugin answers.
func startRelay(listen, plugin string) (*relay, error) {
	upstream, err := grpc.NewClient(
		"unix://"+plugin,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(rawCodec{})),
	)
	if err != nil {
		return nil, err
	}
	listener, err := net.Listen("unix", listen)
	if err != nil {
		return nil, err
	}
	r := &relay{upstream: upstream, calls: map[string]int{}}
	server := grpc.NewServer(
		grpc.ForceServerCodec(rawCodec{}), grpc.UnknownServiceHandler(r.pass),
	)
	go func() { _ = server.Serve(listener) }()
	return r, nil
}

func (r *relay) pass(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	r.mutex.Lock()
	r.calls[path.Base(method)]++
	r.mutex.Unlock()

	var request, reply []byte
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	if err := r.upstream.Invoke(stream.Context(), method, &request, &reply); err != nil {
		return err
	}
	return stream.SendMsg(&reply)
}

// take returns the counts since the last take.
func (r *relay) take() map[string]int {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	calls := r.calls
	r.calls = map[string]int{}
	return calls
}

// rawCodec leaves messages as the bytes they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "raw" }

func (rawCodec) Marshal(v any) ([]byte, error) {
	data, ok := v.(*[]byte)
	if !ok {
		return nil, fmt.Errorf("cannot relay a %T", v)
	}
	return *data, nil
}

func (rawCodec) Unmarshal(data []byte, v any) error {
	target, ok := v.(*[]byte)
	if !ok {
		return fmt.Errorf("cannot relay a %T", v)
	}
	*target = append([]byte{}, data...)
	return nil
}
