package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"net/http"
	"sort"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/server/options/encryptionconfig"
	"k8s.io/apiserver/pkg/storage/value"
)

var secrets = schema.GroupResource{Resource: "secrets"}

type loaded struct {
	Resources []string       `json:"resources"`
	Health    []string       `json:"health"` // "" where the check is nil
	Calls     map[string]int `json:"calls,omitempty"`
}

type written struct {
	Calls  map[string]int `json:"calls"`
	Values [][]byte       `json:"values"`
}

type readBack struct {
	Calls map[string]int `json:"calls"`
	Stale int            `json:"stale"`
	Wrong int            `json:"wrong"`
}

type report struct {
	FirstLoad  loaded   `json:"first_load"`
	Writes     written  `json:"writes"`
	SecondLoad loaded   `json:"second_load"`
	Reads      readBack `json:"reads"`
}

func loadAll(files []string) (any, error) {
	reports := map[string]loaded{}
	for _, name := range files {
		_, result, err := load(context.Background(), name)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		reports[name] = result
	}
	return reports, nil
}

// load does what kube-apiserver does at start, and asks for its health once.
func load(ctx context.Context, name string) (value.Transformer, loaded, error) {
	config, err := encryptionconfig.LoadEncryptionConfig(ctx, name, false, "loader")
	if err != nil {
		return nil, loaded{}, err
	}
	result := loaded{Resources: []string{}, Health: []string{}}
	for resource := range config.Transformers {
		result.Resources = append(result.Resources, resource.String())
	}
	sort.Strings(result.Resources)
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "/readyz", nil)
	if err != nil {
		return nil, loaded{}, err
	}
	for _, check := range config.HealthChecks {
		text := ""
		if err := check.Check(request); err != nil {
			text = err.Error()
		}
		result.Health = append(result.Health, text)
	}
	transformers := encryptionconfig.StaticTransformers(config.Transformers)
	return transformers.TransformerForResource(secrets), result, nil
}

// drive writes through one load and reads through a second one, whose caches
// are as empty as those of a new API server.
func drive(args []string) (any, error) {
	flags := flag.NewFlagSet("drive", flag.ContinueOnError)
	config := flags.String("config", "", "EncryptionConfiguration `file`")
	listen := flags.String("listen", "", "`socket` the configuration names")
	plugin := flags.String("plugin", "", "`socket` of the plugin")
	objects := flags.Int("objects", 1000, "how many objects")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	counts, err := startRelay(*listen, *plugin)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	var result report
	writer, first, err := load(ctx, *config)
	if err != nil {
		return nil, err
	}
	result.FirstLoad = first
	result.FirstLoad.Calls = counts.take()
	if result.Writes.Values, err = write(ctx, writer, *objects); err != nil {
		return nil, err
	}
	result.Writes.Calls = counts.take()
	reader, second, err := load(ctx, *config)
	if err != nil {
		return nil, err
	}
	result.SecondLoad = second
	result.SecondLoad.Calls = counts.take()
	if err := read(ctx, reader, result.Writes.Values, &result.Reads); err != nil {
		return nil, err
	}
	result.Reads.Calls = counts.take()
	return result, nil
}

func object(number int) ([]byte, value.Context) {
	place := fmt.Sprintf("/registry/secrets/default/object-%d", number)
	return []byte("the plaintext of " + place), value.DefaultContext(place)
}

func write(ctx context.Context, to value.Transformer, count int) ([][]byte, error) {
	values := make([][]byte, count)
	for number := range values {
		plaintext, place := object(number)
		stored, err := to.TransformToStorage(ctx, plaintext, place)
		if err != nil {
			return nil, err
		}
		values[number] = stored
	}
	return values, nil
}

func read(ctx context.Context, from value.Transformer, values [][]byte, result *readBack) error {
	for number, stored := range values {
		plaintext, place := object(number)
		got, stale, err := from.TransformFromStorage(ctx, stored, place)
		if err != nil {
			return err
		}
		if stale {
			result.Stale++
		}
		if !bytes.Equal(plaintext, got) {
			result.Wrong++
		}
	}
	return nil
}
