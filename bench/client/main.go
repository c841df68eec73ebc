// Command client calls a KMS plugin with the API server's own gRPC library, each
// request with a DEK or a record of its own, and prints what came of it as JSON.
//
//	client -socket SOCKET -encrypt [-count N | -for DURATION] [-records FILE]
//	client -socket SOCKET -records FILE [-for DURATION]
//
// The first encrypts, and with -records writes the records to FILE, a line each. The
// second decrypts every record once, or, with -for, over and over; a DEK that comes
// back changed counts as "WRONG". -api is v1 or v2. So many streams share one
// connection.
package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
)

const (
	dekSize = 32              // bytes
	timeout = 3 * time.Second // what EncryptionConfiguration has by default
	warmUp  = time.Second / 2 // of -for, before anything is counted
	wrong   = "WRONG"
)

// A record is what the API server stores, with the DEK that must come back.
type record struct {
	Dek         []byte            `json:"dek"`
	Cipher      []byte            `json:"cipher"`
	KeyID       string            `json:"key_id,omitempty"`
	Annotations map[string][]byte `json:"annotations,omitempty"`
}

// A plugin is one connection to a KMS plugin, by one of the APIs.
type plugin interface {
	ready(context.Context) error
	encrypt(ctx context.Context, dek []byte) (record, error)
	decrypt(context.Context, record) ([]byte, error)
}

// A call makes the nth request and returns the name of its status code.
type call func(n int64) string

type report struct {
	Requests int            `json:"requests"`
	Seconds  float64        `json:"seconds"`
	Codes    map[string]int `json:"codes"`
	P50      float64        `json:"p50_ms"`
	P90      float64        `json:"p90_ms"`
	P99      float64        `json:"p99_ms"`
	P999     float64        `json:"p999_ms"`
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
	api := flag.String("api", "v1", "v1 or v2")
	file := flag.String("records", "", "`file` of DEKs and records")
	encrypt := flag.Bool("encrypt", false, "encrypt; otherwise decrypt")
	count := flag.Int("count", 0, "encrypt so many DEKs")
	streams := flag.Int("streams", 1, "requests at once")
	duration := flag.Duration("for", 0, "how long to go on")
	flag.Parse()

	connection, err := grpc.NewClient("unix:"+*socket,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"))
	if err != nil {
		return err
	}
	defer connection.Close()
	server, err := client(*api, connection)
	if err != nil {
		return err
	}
	if err := connect(server); err != nil {
		return err
	}

	var (
		result report
		one    call
	)
	records := make([]record, *count)
	if *encrypt {
		one = seal(server, records)
	} else {
		if records, err = read(*file); err != nil {
			return err
		}
		*count = len(records)
		one = unseal(server, records)
	}
	if *duration > 0 {
		measureFor(one, *streams, warmUp)
		result = measureFor(one, *streams, *duration)
	} else {
		result = measure(one, *streams, *count)
	}
	if *encrypt && *file != "" {
		if err := write(*file, records); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(result)
}

// connect makes the connection before the clock runs.
func connect(one plugin) error {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	err := one.ready(ctx)
	if status.Code(err).String() == "Unimplemented" { // the empty handler
		return nil
	}
	return err
}

func seal(server plugin, records []record) call {
	return func(n int64) string {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		dek := make([]byte, dekSize)
		rand.Read(dek)
		sealed, err := server.encrypt(ctx, dek)
		if n < int64(len(records)) {
			records[n] = sealed
		}
		return status.Code(err).String()
	}
}

func unseal(server plugin, records []record) call {
	return func(n int64) string {
		ctx, cancel := context.WithTimeout(context.Background(), timeout)
		defer cancel()
		each := records[n%int64(len(records))]
		dek, err := server.decrypt(ctx, each)
		if err == nil && !bytes.Equal(each.Dek, dek) {
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
	return report{
		len(times), taken, codes, at(0.5), at(0.9), at(0.99), at(0.999), at(1),
	}
}

func write(name string, records []record) error {
	var text bytes.Buffer
	lines := json.NewEncoder(&text)
	for _, each := range records {
		if err := lines.Encode(each); err != nil {
			return err
		}
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
		var each record
		if err := json.Unmarshal(lines.Bytes(), &each); err != nil {
			return nil, err
		}
		records = append(records, each)
	}
	if len(records) == 0 {
		return nil, fmt.Errorf("%s holds no record", name)
	}
	return records, lines.Err()
}
