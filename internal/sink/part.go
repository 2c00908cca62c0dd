package sink

import "github.com/ClickHouse/ch-go/proto"

// part is a block on its way to ch-go, which asks its columns for rows: none before the
// server has taken the query, then those of the block, some at a time. The server joins
// them again: they are one block there (min_insert_block_size_rows).
type part struct {
	block
	of    *block
	step  int  // rows at a time
	next  int  // the first row that was not shown
	taken bool // the server has said which columns it takes
}

// compressedRows is how many rows are compressed at a time. ch-go holds such a piece
// twice, as it is and compressed, and once more while it grows: a block of 100,000 rows
// in one piece takes 100 MB more.
const compressedRows = 16384

func newPart(of *block, compressed bool) *part {
	p := &part{block: *newBlock(), of: of, step: of.rows()}
	if compressed {
		p.step = min(p.step, compressedRows)
	}
	return p
}

// input returns the columns for ch-go.
func (p *part) input() proto.Input {
	columns := p.block.input()
	columns[0].Data = &inferred{p.ts, &p.taken}
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
func (p *part) more() bool {
	b, from, to := p.of, p.next, min(p.next+p.step, p.of.rows())
	p.next = to
	p.ts.Data = b.ts.Data[from:to]
	p.eventName.Index, p.eventName.Keys32 = b.eventName.Index, b.eventName.Keys32[from:to]
	p.channel = b.channel.rows(from, to)
	p.campaignID = b.campaignID.rows(from, to)
	p.userID = b.userID.rows(from, to)
	p.tags.show(&b.tags, from, to)
	p.metadata = b.metadata.rows(from, to)
	p.eventID = b.eventID[from:to]
	p.receivedAt.Data = b.receivedAt.Data[from:to]
	p.src = b.src[from:to]
	p.block.part = b.part[from:to]
	p.offset = b.offset[from:to]
	p.first, p.last = b.first[from:to], b.last[from:to]
	p.rowCount, p.dup, p.dead = b.rowCount[from:to], b.dup[from:to], b.dead[from:to]
	return from < to
}
