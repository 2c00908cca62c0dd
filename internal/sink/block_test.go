package sink

import (
	"context"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/go-cmp/cmp"

	"edge/internal/codec"
)

// odd are events with values that are easy to get wrong.
var odd = []codec.Event{
	{Name: []byte("a"), UserID: []byte("u"), EventID: []byte("1"), Timestamp: 946_684_800_000, ReceivedAt: 1},
	{Name: []byte("a"), UserID: []byte("u"), EventID: []byte("2"), Timestamp: 4_294_967_295_999, ReceivedAt: 4_294_967_295_999},
	{Name: []byte("名前 – ñ 🎈"), Channel: []byte("web"), CampaignID: []byte("'; DROP TABLE events; --"), UserID: []byte("\u0001\t\n\\\"'"),
		EventID: []byte("6ba7b810-9dad-11d1-80b4-00c04fd430c8"), Timestamp: 1_708_732_800_123, ReceivedAt: 1_708_732_800_124},
	{Name: []byte("tags"), UserID: []byte("u"), EventID: []byte("4"), Timestamp: 1_708_732_800_000, ReceivedAt: 5,
		Tags: [][]byte{[]byte("x"), []byte("y"), []byte("x"), []byte(""), []byte("🎈")}},
	{Name: []byte("many"), UserID: []byte("u"), EventID: []byte("5"), Timestamp: 1_708_732_800_000, ReceivedAt: 5, Tags: manyTags(3000)},
	{Name: []byte("long"), UserID: []byte(strings.Repeat("u", 1024)), EventID: []byte("6"), Timestamp: 1_708_732_800_000, ReceivedAt: 5,
		Metadata: []byte(`{"k":"` + strings.Repeat("é", 30_000) + `"}`)},
	{Name: []byte("a"), Channel: []byte("push"), UserID: []byte("u"), EventID: []byte("7"), Timestamp: 946_684_800_001, ReceivedAt: 1, Metadata: []byte("{ }")},
}

func manyTags(n int) (tags [][]byte) {
	for i := range n {
		tags = append(tags, fmt.Appendf(nil, "tag%d", i%500))
	}
	return tags
}

// TestEveryColumnComesBack stores odd values and reads each column as text.
func TestEveryColumnComesBack(t *testing.T) {
	t.Run("plain", func(t *testing.T) { everyColumnComesBack(t, false) })
	t.Run("compressed", func(t *testing.T) { everyColumnComesBack(t, true) })
}

func everyColumnComesBack(t *testing.T, compress bool) {
	l := newLab(t, 1)
	l.clickhouse.Compress = compress
	l.start()
	var want []string
	l.produce(len(odd), func(i int, ev *codec.Event) { *ev = odd[i] })
	for i, ev := range odd {
		tags := make([]string, len(ev.Tags))
		for k, tag := range ev.Tags {
			tags[k] = string(tag)
		}
		id := codec.ID(ev.EventID)
		want = append(want, fmt.Sprintf("%d|%s|%s|%s|%s|%s|%s|%x|%d|%d|%d", ev.Timestamp, ev.Name, ev.Channel, ev.CampaignID, ev.UserID,
			strings.Join(tags, ","), ev.Metadata, id, ev.ReceivedAt, i, len(odd)))
	}
	l.settled()
	l.rawIsLedger()
	got, err := l.pool.Strings(context.Background(), `SELECT CAST(concat(toString(toUnixTimestamp64Milli(ts)), '|', event_name, '|', channel, '|', campaign_id, '|', user_id, '|',
		arrayStringConcat(tags, ','), '|', metadata, '|', replaceAll(toString(event_id), '-', ''), '|', toString(toUnixTimestamp64Milli(received_at)), '|', toString(_offset), '|',
		toString(_rows)) AS String) FROM events ORDER BY _offset`)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("rows differ (-want +got):\n%s", diff)
	}
	l.rollupsAreRaw()
	l.batchesAddUp()
}

// oddBlock is a sealed block of them.
func oddBlock() *block {
	b := newBlock()
	for i, ev := range odd {
		ev.ID = codec.ID(ev.EventID)
		b.append(&ev, 3, int64(i))
	}
	sealOdd(b)
	return b
}

func sealOdd(b *block) {
	b.seal(7, map[int32]*batch{3: {first: 0, last: 9, rows: len(odd), duplicates: 1, dead: 2}})
}

// TestBlockCopiesRows copies rows one by one, as recovery does with what is
// missing, and into a block that was used before.
func TestBlockCopiesRows(t *testing.T) {
	from := oddBlock()
	value := func(c *text, i int) string {
		one := text{}
		one.copyRow(c, i)
		n, k := binary.Uvarint(one.wire)
		if int(n)+k != len(one.wire) {
			t.Errorf("value %d says that it has %d bytes, and has %d", i, n, len(one.wire)-k)
		}
		return string(one.wire[k:])
	}
	tags := func(b *block, i int) (all []string) {
		one := tagsColumn{}
		one.copyRow(&b.tags, i)
		for k := range one.values.Rows() {
			all = append(all, value(&one.values, k))
		}
		return all
	}
	to := newBlock()
	for round := range 2 {
		for i := range odd {
			to.copyRow(from, len(odd)-1-i)
		}
		sealOdd(to)
		for i := range odd {
			k := len(odd) - 1 - i
			show := func(b *block, i int) string {
				return fmt.Sprintf("%d %s %s %s %s %s %s %x %d %d %d %d %d %d %d %d %d", b.ts.Data[i], b.eventName.row(i), value(&b.channel, i), value(&b.campaignID, i),
					value(&b.userID, i), tags(b, i), value(&b.metadata, i), b.eventID[i], b.receivedAt.Data[i], b.src.row(i), b.part.row(i), b.offset[i], b.first.row(i),
					b.last.row(i), b.rowCount.row(i), b.dup.row(i), b.dead.row(i))
			}
			if got, want := show(to, i), show(from, k); got != want {
				t.Errorf("round %d, row %d\ngot  %.200s\nwant %.200s", round, i, got, want)
			}
		}
		to.reset()
		if to.rows() != 0 || to.eventName.values.Rows() != 0 || to.tags.Rows() != 0 || to.tags.values.Rows() != 0 || to.userID.Rows() != 0 {
			t.Error("a reset block is not empty")
		}
	}
}

// TestPiecesAreTheBlock sends a block in pieces of every size: together they are the block.
func TestPiecesAreTheBlock(t *testing.T) {
	whole := oddBlock()
	// sent appends what goes over the wire of each column, joined as the server does.
	sent := func(in proto.Input, b *block, to map[string][]byte, values *int) {
		for _, c := range in {
			var buf proto.Buffer
			switch c.Name {
			case "event_name":
				for i := range b.eventName.Keys32 {
					buf.PutString(b.eventName.Index.(*proto.ColStr).Row(int(b.eventName.Keys32[i])))
				}
			case "tags":
				for _, end := range b.tags.ends {
					buf.PutUInt64(end + uint64(*values))
				}
				*values += b.tags.values.Rows()
				to["values of tags"] = append(to["values of tags"], b.tags.values.wire...)
			default:
				c.Data.EncodeColumn(&buf)
			}
			to[c.Name] = append(to[c.Name], buf.Buf...)
		}
	}
	want := make(map[string][]byte)
	sent(whole.input(), whole, want, new(int))
	for step := 1; step <= len(odd); step++ {
		p := newPieces(whole, true)
		p.step = step
		in := p.input()
		got, values := make(map[string][]byte), 0
		for n := 0; p.more(); n += step {
			for _, c := range in {
				if want := min(step, len(odd)-n); c.Data.Rows() != want {
					t.Fatalf("%s has %d rows from %d in steps of %d; want %d", c.Name, c.Data.Rows(), n, step, want)
				}
			}
			sent(in, p.shown, got, &values)
		}
		for _, c := range in {
			if c.Data.Rows() != 0 {
				t.Errorf("%s still has rows", c.Name)
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("in steps of %d (-whole +pieces):\n%s", step, diff)
		}
	}
}

// TestPieceHasItsOwnNames: the dictionary of a block of ever new names goes out once.
func TestPieceHasItsOwnNames(t *testing.T) {
	b := newBlock()
	const rows = 3*compressedRows + 1
	for i := range rows {
		b.append(&codec.Event{Name: fmt.Appendf(nil, "name%d", i/2)}, 0, int64(i))
	}
	b.seal(7, map[int32]*batch{0: {}})
	names := 0
	for p := newPieces(b, true); p.more(); {
		names += p.shown.eventName.Index.Rows()
	}
	if names != rows/2+1 {
		t.Errorf("%d names were sent; the block has %d", names, rows/2+1)
	}
}

// TestCompressedBlockIsOne: a block that is compressed in pieces is inserted as one.
func TestCompressedBlockIsOne(t *testing.T) {
	l := newLab(t, 1)
	l.clickhouse.Compress = true
	l.produce(3 * compressedRows)
	// The first flight does not wait to be full. If it is small, the next one does: there
	// is enough in the log to fill it.
	l.start(func(c *Config) { c.FlushInterval, c.FlushRows, c.FlushBytes = time.Second, 2*compressedRows, 64<<20 })
	l.settled()
	l.rawIsLedger()
	l.rollupsAreRaw()
	l.batchesAddUp()
	if n := l.value("SELECT max(_rows) > " + fmt.Sprint(compressedRows) + " FROM events"); n != "1" {
		t.Error("no block is larger than what is compressed at a time")
	}
	inserts := l.value("SELECT sum(n) FROM (SELECT uniqExact(_first) AS n FROM events GROUP BY toYYYYMM(ts))")
	if parts := l.value("SELECT count() FROM system.parts WHERE database = currentDatabase() AND table = 'events' AND level = 0"); parts != inserts {
		t.Errorf("%s parts were made of %s blocks and months", parts, inserts)
	}
}

// TestInsertSettings states what goes with every insert. A change here is a
// change of what recovery may rely on.
func TestInsertSettings(t *testing.T) {
	l := newLab(t, 1)
	p := l.prepare()
	defer p.pool.Close()
	settings, err := p.sink.checkSettings(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s := &session{Sink: p.sink, source: source{logNumbers: logNumbers{now: 42}, settings: settings}}
	s.cfg.InsertTimeout = 30 * time.Second
	f := newFlight(newBlock())
	f.batches[12], f.batches[3] = &batch{}, &batch{}
	var got []string
	for _, v := range s.insertSettings(f) {
		if !v.Important {
			t.Errorf("%s is not important: a server that does not know it would ignore it", v.Key)
		}
		got = append(got, v.Key+"="+v.Value)
	}
	want := []string{
		"async_insert=0",
		"max_insert_block_size=1048449",
		"min_insert_block_size_rows=1048449",
		"min_insert_block_size_bytes=536870912",
		"max_partitions_per_insert_block=0", "optimize_on_insert=1",
		"materialized_views_ignore_errors=0",
		"insert_deduplicate=0",
		"deduplicate_insert=disable",
		"deduplicate_blocks_in_dependent_materialized_views=0",
		"max_execution_time=30",
		"log_comment=edge/42/,3,12,",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("settings of an insert (-want +got):\n%s", diff)
	}
}

// TestInsertIsSeenWhileItRuns: what recovery waits for, and what a repair looks
// for, is on the server's list while an insert writes.
func TestInsertIsSeenWhileItRuns(t *testing.T) {
	l := newLab(t, 1)
	l.exec("CREATE TABLE slow_to (n UInt64) ENGINE = Null")
	l.exec("CREATE MATERIALIZED VIEW slow TO slow_to AS SELECT sleepEachRow(0.05) AS n FROM events")
	l.start()
	l.produce(30)
	eventually(t, "the insert is listed", func() error {
		n := l.value(fmt.Sprintf("SELECT count() FROM system.processes WHERE %s AND startsWith(Settings['log_comment'], 'edge/%d/,0,')", inserting, l.src()))
		if n != "1" {
			return fmt.Errorf("%s listed", n)
		}
		return nil
	})
	l.settled()
	l.exact()
}

func TestRuns(t *testing.T) {
	f := func(column []int, want string) {
		t.Helper()
		got := ""
		runs(column, func(v, n int) { got += fmt.Sprintf("%dx%d ", n, v) })
		if got != want {
			t.Errorf("%v: got %q; want %q", column, got, want)
		}
	}
	f(nil, "")
	f([]int{7}, "1x7 ")
	f([]int{7, 7, 8, 7, 7, 7}, "2x7 1x8 3x7 ")
}
