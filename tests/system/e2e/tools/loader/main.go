// Command loader is the API server's own encryption code without the API
// server: it loads EncryptionConfiguration files as kube-apiserver does, writes
// and reads objects through what they configure, and prints the protocols it
// was compiled with. Every mode prints one JSON value on standard output.
//
//	loader descriptors
//	loader load FILE...
//	loader drive -config FILE -listen SOCKET -plugin SOCKET [-objects N]
//	loader serve SOCKET
//
// In drive, FILE names SOCKET of -listen as its endpoint; the loader relays
// from there to -plugin and counts each call. serve is a plugin of somebody else.
package main

import (
	"encoding/json"
	"fmt"
	"os"

	utilfeature "k8s.io/apiserver/pkg/util/feature"
)

var modes = map[string]func(args []string) (any, error){
	"descriptors": descriptors,
	"drive":       drive,
	"load":        loadAll,
	"serve":       serve,
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "loader:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 || modes[args[0]] == nil {
		return fmt.Errorf("the first argument must be descriptors, drive, load or serve")
	}
	if err := utilfeature.DefaultMutableFeatureGate.Set("KMSv1=true"); err != nil {
		return err
	}
	report, err := modes[args[0]](args[1:])
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(report)
}
