package codec

import (
	"bytes"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestReferences: records live until the last reference, on whatever goroutine.
func TestReferences(t *testing.T) {
	pool := NewPool(Rules{})
	b := pool.Get()
	if err := b.DecodeOne([]byte(sample), now); err != nil {
		t.Fatal(err)
	}
	record := b.Record(0)
	want := bytes.Clone(record)
	b.Retain()
	b.Release()
	if !bytes.Equal(record, want) {
		t.Error("a retained record changed")
	}
	done := make(chan bool)
	go func() {
		ok := bytes.Equal(record, want)
		b.Release()
		done <- ok
	}()
	if !<-done {
		t.Error("a retained record changed")
	}
	if poison && record[0] != 0xDB {
		t.Error("released memory is not poisoned")
	}

	f := func(what string, call func()) {
		t.Helper()
		defer func() {
			if got := recover(); got != "BUG: "+what+" of a released batch" {
				t.Errorf("got %v", got)
			}
		}()
		call()
	}
	// Not from the pool: what is released twice must not be in it meanwhile.
	stray := &Batch{pool: NewPool(Rules{})}
	f("Release", func() { stray.Release() })
	stray.refs.Store(0)
	f("Retain", func() { stray.Retain() })
}

// TestLargeBatchIsNotPinned: the pool keeps no memory of exceptional bodies,
// and no view into a body that is not its own.
func TestLargeBatchIsNotPinned(t *testing.T) {
	b := NewPool(Rules{MaxEventBytes: 8 << 20, MaxEvents: 100_000, MaxFieldBytes: 8 << 20}).Get()
	tags := strings.Repeat(`"\u0041",`, 5000)
	huge := `{"event_name":"` + strings.Repeat(`\n`, 1<<20) + `","user_id":"u","timestamp":1708732800000,"tags":[` + tags + `"x"]}`
	deep := strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000)
	body := "[" + huge + strings.Repeat(","+one("a")+",{}", 20_000) + "," + deep + "]"
	if err := b.DecodeArray([]byte(body), now); err != nil {
		t.Fatal(err)
	}
	if b.Len() != 20_001 || len(b.Rejected()) != 20_001 || cap(b.dec.stack) <= keepStack {
		t.Fatalf("got %d records, %d rejections, stack %d", b.Len(), len(b.Rejected()), cap(b.dec.stack))
	}
	b.ForgetRejected() // and the broker may take its time
	if cap(b.rejected) > 64 || cap(b.dec.stack) > keepStack {
		t.Errorf("waits with %d rejections and stack %d", cap(b.rejected), cap(b.dec.stack))
	}
	if err := b.DecodeArray([]byte(body), now); err != nil {
		t.Fatal(err)
	}
	b.Release()
	if cap(b.arena) > keepArena || cap(b.records) > keepRecords || cap(b.rejected) > keepRecords ||
		cap(b.dec.scratch) > keepScratch || cap(b.dec.tags) > keepTags || cap(b.dec.stack) > keepStack {
		t.Errorf("kept arena %d, records %d, rejected %d, scratch %d, tags %d, stack %d",
			cap(b.arena), cap(b.records), cap(b.rejected), cap(b.dec.scratch), cap(b.dec.tags), cap(b.dec.stack))
	}

	b.refs.Store(1)
	if err := b.DecodeOne([]byte(sample), now); err != nil {
		t.Fatal(err)
	}
	b.Release()
	for _, tag := range b.dec.tags[:cap(b.dec.tags)] {
		if tag != nil {
			t.Errorf("tag %q is still viewed", tag)
		}
	}
	if diff := cmp.Diff(Event{}, b.ev); diff != "" {
		t.Error(diff)
	}
}
