package main

import (
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	v1beta1 "k8s.io/kms/apis/v1beta1"
	v2 "k8s.io/kms/apis/v2"
)

// Only what is on the wire: no file names, options or comments.
type file struct {
	Syntax   string             `json:"syntax"`
	Services map[string]methods `json:"services"`
	Messages map[string]fields  `json:"messages"`
}

type (
	methods map[string]method
	fields  map[string]field
)

type method struct {
	Input           string `json:"input"`
	Output          string `json:"output"`
	ClientStreaming bool   `json:"client_streaming"`
	ServerStreaming bool   `json:"server_streaming"`
}

type field struct {
	Number   int32  `json:"number"`
	Type     string `json:"type"`
	TypeName string `json:"type_name"`
	Label    string `json:"label"`
	Optional bool   `json:"proto3_optional"`
}

func descriptors([]string) (any, error) {
	packages := map[string]file{}
	for _, descriptor := range []protoreflect.FileDescriptor{
		v1beta1.File_staging_src_k8s_io_kms_apis_v1beta1_api_proto,
		v2.File_staging_src_k8s_io_kms_apis_v2_api_proto,
	} {
		proto := protodesc.ToFileDescriptorProto(descriptor)
		packages[proto.GetPackage()] = canonical(proto)
	}
	return packages, nil
}

func canonical(proto *descriptorpb.FileDescriptorProto) file {
	result := file{proto.GetSyntax(), map[string]methods{}, map[string]fields{}}
	for _, service := range proto.GetService() {
		named := methods{}
		for _, m := range service.GetMethod() {
			named[m.GetName()] = method{
				m.GetInputType(), m.GetOutputType(),
				m.GetClientStreaming(), m.GetServerStreaming(),
			}
		}
		result.Services[service.GetName()] = named
	}
	for _, message := range proto.GetMessageType() {
		addMessage(result.Messages, "", message)
	}
	return result
}

func addMessage(to map[string]fields, prefix string, message *descriptorpb.DescriptorProto) {
	name := prefix + message.GetName()
	named := fields{}
	for _, f := range message.GetField() {
		named[f.GetName()] = field{
			f.GetNumber(), f.GetType().String(), f.GetTypeName(),
			f.GetLabel().String(), f.GetProto3Optional(),
		}
	}
	to[name] = named
	for _, nested := range message.GetNestedType() {
		addMessage(to, name+".", nested)
	}
}
