package sink

import "github.com/ClickHouse/ch-go/proto"

// pieces is a block on its way to ch-go, which asks columns for their rows: there are
// none before the server has taken the query, then those of the block, some at a time.
// The server joins them again, and they are one block there: together they are below
// min_insert_block_size_rows and min_insert_block_size_bytes.
type pieces struct {
	of    *block
	shown *block // shares the memory of of and is not written to
	step  int    // rows at a time
	next  int    // the first row that was not shown yet
	taken bool   // the server has said which columns it takes

	keys []uint32 // of the dictionary's values in that of the piece, plus one
	used []uint32 // those that are not 0
}

// compressedRows is how many rows are compressed at a time. ch-go holds such a piece
// twice, as it is and compressed, and once more while it grows: a block of 100,000 rows
// in one piece takes 100 MB more.
const compressedRows = 4096

// newPieces is b in pieces if it is to be compressed and small enough to be joined
// again, which that of a recovery need not be.
func newPieces(b *block, compressed bool) *pieces {
	p := &pieces{of: b, shown: newBlock(), step: b.rows()}
	if compressed && b.rows() <= MaxFlushRows && b.size() <= MaxFlushBytes {
		p.step = compressedRows
	}
	return p
}

// input returns the columns for ch-go.
func (p *pieces) input() proto.Input {
	columns := p.shown.input()
	columns[0].Data = &inferred{p.shown.ts, &p.taken}
	return columns
}

// inferred notes that the server has answered the INSERT: only with that is Infer
// called, while ch-go asks for input also when the connection ended instead.
type inferred struct {
	*proto.ColDateTime64
	taken *bool
}

func (c *inferred) Infer(t proto.ColumnType) error {
	*c.taken = true
	return c.ColDateTime64.Infer(t)
}

// more shows the next rows, and tells whether there are any.
func (p *pieces) more() bool {
	b, s := p.of, p.shown
	from, to := p.next, min(p.next+p.step, b.rows())
	p.next = to
	s.ts.Data = b.ts.Data[from:to]
	p.names(from, to)
	s.channel = b.channel.rows(from, to)
	s.campaignID = b.campaignID.rows(from, to)
	s.userID = b.userID.rows(from, to)
	s.tags = b.tags.rows(from, to)
	s.metadata = b.metadata.rows(from, to)
	s.eventID = b.eventID[from:to]
	s.receivedAt.Data = b.receivedAt.Data[from:to]
	s.src = b.src.rows(from, to)
	s.part = b.part.rows(from, to)
	s.offset = b.offset[from:to]
	s.first, s.last = b.first.rows(from, to), b.last.rows(from, to)
	s.rowCount, s.dup, s.dead = b.rowCount.rows(from, to), b.dup.rows(from, to), b.dead.rows(from, to)
	return from < to
}

// names gives a piece a dictionary of its own names. With that of the block, one of ever
// new names would be sent, and counted by the server, with every piece.
func (p *pieces) names(from, to int) {
	all, own := &p.of.eventName, &p.shown.eventName
	if to-from == p.of.rows() {
		own.Index, own.Keys32 = all.Index, all.Keys32
		return
	}
	own.Index = own.values
	own.Reset()
	if p.keys == nil {
		p.keys = make([]uint32, all.values.Rows())
	}
	for _, k := range p.used {
		p.keys[k] = 0
	}
	p.used = p.used[:0]
	for _, k := range all.Keys32[from:to] {
		if p.keys[k] == 0 {
			own.values.AppendBytes(all.values.RowBytes(int(k)))
			p.keys[k] = uint32(own.values.Rows())
			p.used = append(p.used, k)
		}
		own.Keys32 = append(own.Keys32, p.keys[k]-1)
	}
}
