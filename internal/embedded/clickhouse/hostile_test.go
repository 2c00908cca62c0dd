package clickhouse

import (
	"bytes"
	"errors"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/ch-go/proto"
)

// exchange is what a client sends in a short life: a ping, a query, an insert
// with a block of every layout, and, compressed, the same insert again.
func exchange(t testing.TB) []byte {
	var b proto.Buffer
	appendHello(&b)
	proto.ClientCodePing.Encode(&b)
	appendQuery(&b, "SELECT 1")
	appendBlock(&b, nil)
	appendQuery(&b, "INSERT INTO hostile VALUES")
	appendBlock(&b, nil)
	appendBlock(&b, hostileColumns())
	appendBlock(&b, nil)

	proto.Query{Body: "INSERT INTO hostile VALUES", Stage: proto.StageComplete, Compression: proto.CompressionEnabled,
		Settings: []proto.Setting{{Key: "max_threads", Value: "1"}}, Parameters: []proto.Parameter{{Key: "p", Value: "'1'"}},
		Info: proto.ClientInfo{ProtocolVersion: revision, Major: 1, Interface: proto.InterfaceTCP, Query: proto.ClientQueryInitial},
	}.EncodeAware(&b, revision)
	for _, in := range []proto.Input{nil, hostileColumns(), nil} {
		var block proto.Buffer
		appendBlock(&block, in)
		w := compress.NewWriter(compress.LevelZero, compress.LZ4)
		if err := w.Compress(block.Buf[2:]); err != nil { // without packet code and table name
			t.Fatal(err)
		}
		b.PutRaw(block.Buf[:2])
		b.PutRaw(w.Data)
	}
	return b.Buf
}

const hostileTable = `CREATE TABLE hostile (n UInt64, s String, lc LowCardinality(String), a Array(LowCardinality(String)),
	m Map(String, UInt8), o Nullable(String)) ENGINE=Null`

func hostileColumns() proto.Input {
	n := proto.ColUInt64{1, 2}
	s, lc := new(proto.ColStr), new(proto.ColStr).LowCardinality()
	a := proto.NewArray(new(proto.ColStr).LowCardinality())
	m := proto.NewMap(new(proto.ColStr), new(proto.ColUInt8))
	o := new(proto.ColStr).Nullable()
	for range n {
		s.Append("text")
		lc.Append("low")
		a.Append([]string{"x", "y"})
		m.Append(map[string]uint8{"k": 1})
		o.Append(proto.Nullable[string]{Set: true, Value: "v"})
	}
	return proto.Input{{Name: "n", Data: n}, {Name: "s", Data: s}, {Name: "lc", Data: lc}, {Name: "a", Data: a}, {Name: "m", Data: m}, {Name: "o", Data: o}}
}

// send writes p, closes the sending side, and returns everything that comes back.
func send(t testing.TB, child *Child, p []byte) []byte {
	t.Helper()
	conn, err := child.DialContext(t.Context(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, _ = conn.Write(p) // the server may hang up before it has read all
	_ = conn.(*net.UnixConn).CloseWrite()
	answer, err := io.ReadAll(conn)
	if err != nil && !bytes.Contains([]byte(err.Error()), []byte("reset")) {
		t.Fatalf("the server neither answered nor hung up: %v", err)
	}
	return answer
}

func TestStrictPrefixesAndFlippedBitsHarmNobody(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	do(t, c, hostileTable)
	whole := exchange(t)
	if got := send(t, child, whole); !bytes.Contains(got, []byte("LowCardinality(String)")) || bytes.Contains(got, []byte("DB::Exception")) {
		t.Fatalf("the exchange itself is not valid: %q", got)
	}
	pid := child.Pid()
	for n := range whole {
		send(t, child, whole[:n])
	}
	for n := range whole {
		bad := bytes.Clone(whole)
		if bad[n] ^= 1 << (n % 8); n%4 == 3 {
			bad[n] = 0xff
		}
		send(t, child, bad)
	}
	if got := value(t, c, "1"); got != "1" || child.Pid() != pid || child.Restarts() != 0 {
		t.Errorf("the child died: %d restarts", child.Restarts())
	}
}

func TestGarbageClosesOnlyItsConnection(t *testing.T) {
	child := startChild(t, "")
	c := dial(t, child)
	f := func(p []byte) {
		t.Helper()
		send(t, child, p)
		if err := c.Ping(t.Context()); err != nil {
			t.Fatalf("after %q: %v", p, err)
		}
	}
	f([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n"))
	f(bytes.Repeat([]byte{0xff}, 1<<20))
	f(make([]byte, 1<<20))
	f([]byte{0, 0xff, 0xff, 0xff, 0xff, 0x0f}) // a client name of 4 GiB
	if child.Restarts() != 0 {
		t.Error("the child died")
	}
}

func TestConnectionsBeyondTheLimitHearWhy(t *testing.T) {
	child := startChild(t, "", "EDGE_TEST_MAX_CONNECTIONS=2")
	a, b := dial(t, child), dial(t, child)
	for range 20 {
		if _, err := ch.Dial(t.Context(), ch.Options{Dialer: child}); code(err) != 202 {
			t.Fatalf("the third: %v; want code 202", err)
		}
	}
	if got := value(t, a, "1"); got != "1" {
		t.Errorf("got %q; want 1", got)
	}
	b.Close()
	eventually(t, "a place is free again", func() bool {
		c, err := ch.Dial(t.Context(), ch.Options{Dialer: child})
		if err == nil {
			c.Close()
		}
		return err == nil
	})
}

// Who says nothing takes no place from those who do, and gives way to those who come.
func TestSilentConnectionsTakeNoPlace(t *testing.T) {
	child := startChild(t, "", "EDGE_TEST_MAX_CONNECTIONS=4")
	for range 8 {
		conn, err := child.DialContext(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
	}
	for range 4 {
		dial(t, child)
	}
	if _, err := ch.Dial(t.Context(), ch.Options{Dialer: child}); code(err) != 202 {
		t.Errorf("one more: %v; want code 202", err)
	}
}

// Clients that come all at once are each let in or told why not.
func TestBurstOfConnections(t *testing.T) {
	const places = 8
	child := startChild(t, "", "EDGE_TEST_MAX_CONNECTIONS="+strconv.Itoa(places))
	var in, told atomic.Int32
	var wg sync.WaitGroup
	for range 2 * places {
		wg.Go(func() {
			c, err := ch.Dial(t.Context(), ch.Options{Dialer: child})
			switch {
			case err == nil:
				in.Add(1)
				t.Cleanup(func() { c.Close() })
			case code(err) == 202:
				told.Add(1)
			default:
				t.Error(err)
			}
		})
	}
	if wg.Wait(); in.Load() != places || told.Load() != places {
		t.Errorf("%d are in and %d were told why not; want %d each", in.Load(), told.Load(), places)
	}
}

// Of silent connections the oldest give way, and no more of them than come.
func TestOldestSilenceGivesWay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &server{cfg: Config{MaxConnections: 2}, log: testLog(t), sessions: make(map[*session]struct{})}
		var clients []net.Conn
		for range 7 {
			client, conn := net.Pipe()
			defer client.Close()
			srv.start(t.Context(), conn)
			clients = append(clients, client)
		}
		synctest.Wait()
		for i, client := range clients {
			_ = client.SetReadDeadline(time.Now().Add(time.Second))
			_, err := client.Read(make([]byte, 1))
			if gone := errors.Is(err, io.EOF); gone != (i < 3) {
				t.Errorf("connection %d: %v", i, err)
			}
		}
		if len(srv.sessions) != 4 || len(srv.greeting) != 4 {
			t.Errorf("%d sessions, %d greeting; want 4", len(srv.sessions), len(srv.greeting))
		}
	})
}

func TestHandshakeHasItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := &server{cfg: Config{MaxConnections: 2}, log: testLog(t), sessions: make(map[*session]struct{})}
		client, conn := net.Pipe()
		defer client.Close()
		srv.start(t.Context(), conn)
		came := time.Now()
		for _, b := range []byte{byte(proto.ClientCodeHello), 100, 'e', 'd'} { // a byte now and then, of a name of 100
			<-time.After(7 * time.Second)
			if _, err := client.Write([]byte{b}); err != nil {
				t.Fatal(err)
			}
		}
		_, err := client.Read(make([]byte, 1))
		if took := time.Since(came); !errors.Is(err, io.EOF) || took != handshakeTimeout {
			t.Errorf("%v after %v; want EOF after %v", err, took, handshakeTimeout)
		}
		if srv.ended.Wait(); len(srv.sessions)+len(srv.greeting)+srv.admitted != 0 {
			t.Errorf("%d sessions, %d greeting, %d admitted", len(srv.sessions), len(srv.greeting), srv.admitted)
		}
	})
}
