//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"

	"github.com/twmb/franz-go/pkg/kfake"

	"edge/bench/bare"
	"edge/bench/naive"
)

// errArguments is for a person who starts a rival by hand.
var errArguments = errors.New("want: serve-bare ADDR, serve-naive ADDR BROKER sync|async, serve-naive-sink BROKER CLICKHOUSE DATABASE, serve-naive-query ADDR CLICKHOUSE DATABASE, serve-null ADDR PARTITIONS")

// adminOfRival names the address on which a rival tells its allocations, as edge does on
// its admin listener.
const adminOfRival = "BENCH_ADMIN"

// telling is serve, which tells them there, if it was not started by hand.
func telling(serve func(context.Context, []string) error) func(context.Context, []string) error {
	return func(ctx context.Context, args []string) error {
		if addr := os.Getenv(adminOfRival); addr != "" {
			ln, err := net.Listen("tcp4", addr)
			if err != nil {
				return err
			}
			defer ln.Close()
			go func() { _ = http.Serve(ln, http.HandlerFunc(mallocs)) }()
		}
		return serve(ctx, args)
	}
}

func mallocs(w http.ResponseWriter, _ *http.Request) {
	fmt.Fprintln(w, mallocsTotal, ownMallocs())
}

func serveBare(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return errArguments
	}
	ln, err := net.Listen("tcp4", args[0])
	if err != nil {
		return err
	}
	return bare.Serve(ctx, ln)
}

func serveNaive(ctx context.Context, args []string) error {
	if len(args) != 3 || args[2] != "sync" && args[2] != "async" {
		return errArguments
	}
	ln, err := net.Listen("tcp4", args[0])
	if err != nil {
		return err
	}
	return naive.Serve(ctx, ln, naive.Config{Brokers: []string{args[1]}, Topic: topic, Sync: args[2] == "sync"})
}

func serveNaiveSink(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errArguments
	}
	_, err := naive.Sink(ctx, naive.Config{Brokers: args[:1], Topic: topic}, args[1], args[2], -1)
	return err
}

func serveNaiveQuery(ctx context.Context, args []string) error {
	if len(args) != 3 {
		return errArguments
	}
	ln, err := net.Listen("tcp4", args[0])
	if err != nil {
		return err
	}
	return naive.Answer(ctx, ln, args[1], args[2])
}

// serveNull is a broker that acknowledges and throws away: what the producing
// side can do when nothing behind it is in the way.
func serveNull(ctx context.Context, args []string) error {
	if len(args) != 2 {
		return errArguments
	}
	_, port, err := net.SplitHostPort(args[0])
	if err != nil {
		return err
	}
	n, err1 := strconv.Atoi(port)
	partitions, err2 := strconv.Atoi(args[1])
	if err := errors.Join(err1, err2); err != nil {
		return err
	}
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.Ports(n), kfake.BlackholeProduce(),
		kfake.SeedTopics(int32(partitions), topic), kfake.SeedTopics(1, topic+".dead"))
	if err != nil {
		return err
	}
	defer cluster.Close()
	<-ctx.Done()
	return nil
}
