// Command client calls KMS v1 with the API server's own gRPC library, each request
// with a DEK or a record of its own, and prints what came of it as JSON.
//
//	client -socket SOCKET -records FILE -encrypt N [-streams N]
//	client -socket SOCKET -records FILE [-streams N] [-for DURATION]
//
// The first writes N records to FILE, a line each: DEK and record, in hexadecimal.
// The second decrypts every line once, or, with -for, over and over; a DEK that
// comes back changed counts as "WRONG". So many streams share one connection.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	kms "k8s.io/kms/apis/v1beta1"
)

const (
	version = "v1beta1"
	dekSize = 32              // bytes
	timeout = 3 * time.Second // what EncryptionConfiguration has by default
	warmUp  = time.Second     // of -for, before anything is counted
	wrong   = "WRONG"
)

type record struct{ dek, cipher []byte }

// call makes the nth request and returns the name of its status code.
type call func(n int64) string

type report struct {
	Requests int            `json:"requests"`
	Seconds  float64        `json:"seconds"`
	Codes    map[string]int `json:"codes"`
	P50      float64        `json:"p50_ms"`
	P99      float64        `json:"p99_ms"`
	Max      float64        `json:"max_ms"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "client:", err)
		os.Exit(1)
	}
}

func run() error {
	socket := flag.String("socket", "", "`path` of the plugin's socket")
	file := flag.String("records", "", "`file` of DEKs and records")
	encrypt := flag.Int("encrypt", 0, "make so many records")
	streams := flag.Int("streams", 1, "requests at once")
	duration := flag.Duration("for", 0, "how long to decrypt; 0: every record once")
	flag.Parse()

	connection, err := grpc.NewClient("unix:"+*socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"))
	if err != nil {
		return err
	}
	defer connection.Close()
	client := kms.NewKeyManagementServiceClient(connection)
	if err := connect(client); err != nil {
		return err
	}

	var result report
	if *encrypt > 0 {
		records := make([]record, *encrypt)
		result = measure(seal(client, records), *streams, len(records))
		err = write(*file, records)
	} else {
		var records []record
		if records, err = read(*file); err != nil {
			return err
		}
		open := unseal(client, records)
		if *duration > 0 {
			measureFor(open, *streams, warmUp)
			result = measureFor(open, *streams, *duration)
		} else {
			result = measure(open, *streams, len(records))
		}
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// connect makes the connection before the clock runs.
func connect(client kms.KeyManagementServiceClient) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	_, err := client.Version(ctx, &kms.VersionRequest{Version: version},
		grpc.WaitForReady(true))
	if status.Code(err).String() == "Unimplemented" { // the empty handler
		return nil
	}
	return err
}

func seal(client kms.KeyManagementServiceClient, records []record) call {
	return func(n int64) string {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		dek := make([]byte, dekSize)
		rand.Read(dek)
		answer, err := client.Encrypt(ctx, &kms.EncryptRequest{Version: version, Plain: dek})
		records[n] = record{dek, answer.GetCipher()}
		return status.Code(err).String()
	}
}

func unseal(client kms.KeyManagementServiceClient, records []record) call {
	return func(n int64) string {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		each := records[n%int64(len(records))]
		answer, err := client.Decrypt(ctx,
			&kms.DecryptRequest{Version: version, Cipher: each.cipher})
		if err == nil && !bytes.Equal(each.dek, answer.Plain) {
			return wrong
		}
		return status.Code(err).String()
	}
}

// measure makes the calls 0 to count-1, so many streams at once.
func measure(one call, streams, count int) report {
	return load(one, streams, func(n int64) bool { return n < int64(count) })
}

// measureFor makes calls until the time is up.
func measureFor(one call, streams int, duration time.Duration) report {
	until := time.Now().Add(duration)
	return load(one, streams, func(int64) bool { return time.Now().Before(until) })
}

func load(one call, streams int, more func(n int64) bool) report {
	var (
		next    atomic.Int64
		lock    sync.Mutex
		running sync.WaitGroup
		codes   = map[string]int{}
		times   []float64 // milliseconds
	)
	began := time.Now()
	for range streams {
		running.Go(func() {
			mine, took := map[string]int{}, []float64{}
			for n := next.Add(1) - 1; more(n); n = next.Add(1) - 1 {
				start := time.Now()
				mine[one(n)]++
				took = append(took, time.Since(start).Seconds()*1000)
			}
			lock.Lock()
			defer lock.Unlock()
			for code, count := range mine {
				codes[code] += count
			}
			times = append(times, took...)
		})
	}
	running.Wait()
	taken := time.Since(began).Seconds()
	slices.Sort(times)
	at := func(share float64) float64 {
		if len(times) == 0 {
			return 0
		}
		return times[int(share*float64(len(times)-1))]
	}
	return report{len(times), taken, codes, at(0.5), at(0.99), at(1)}
}

func write(name string, records []record) error {
	var text bytes.Buffer
	for _, each := range records {
		fmt.Fprintf(&text, "%x %x\n", each.dek, each.cipher)
	}
	return os.WriteFile(name, text.Bytes(), 0o600)
}

func read(name string) ([]record, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var records []record
	lines := bufio.NewScanner(file)
	for lines.Scan() {
		dek, cipher, _ := strings.Cut(lines.Text(), " ")
		var each record
		if each.dek, err = hex.DecodeString(dek); err != nil {
			return nil, err
		}
		if each.cipher, err = hex.DecodeString(cipher); err != nil {
			return nil, err
		}
		records = append(records, each)
	}
	if len(records) == 0 {
		return nil, fmt.Errorf("%s holds no record", name)
	}
	return records, lines.Err()
}
