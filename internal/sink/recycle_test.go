package sink

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// kgo clears the whole of what it gets, for a batch of ten records as for one of
// 60 MiB: what a large one leaves must not go to the small.
func TestRecycledBytesFit(t *testing.T) {
	f := func(put, packed, most int) {
		t.Helper()
		var p recycled
		p.PutDecompressBytes(make([]byte, put))
		if got := cap(p.GetDecompressBytes(make([]byte, packed), kgo.CodecSnappy)); got > most {
			t.Errorf("after a batch of %d bytes one of %d packed gets %d", put, packed, got)
		}
	}
	f(60<<20, 1<<20, 0)
	f(1<<20, 500, 0)
	f(64<<10, 500, 64<<10)
	f(1<<20, 200<<10, 1<<20)
}
