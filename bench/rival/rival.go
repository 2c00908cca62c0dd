// Package rival holds what the tables are filled with by others: ready blocks
// for ch-go, which is the limit of what a sink can reach, and rows for
// clickhouse-go as a team would write them. Its benchmarks set the parts of
// edge beside what one would use instead: JSON decoders, queues, Kafka clients,
// ClickHouse clients.
package rival

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/ClickHouse/ch-go"
	"github.com/ClickHouse/ch-go/proto"
	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"

	"edge/internal/clickhouse"
	"edge/internal/codec"
)

// Block is rows of the events table as ch-go columns, made before the clock
// starts: sending it costs what encoding and the server cost, and nothing else.
type Block struct {
	ts, receivedAt       *proto.ColDateTime64
	name                 *proto.ColLowCardinality[string]
	channel, campaign    proto.ColStr
	user, metadata       proto.ColStr
	tags                 *proto.ColArr[string]
	id                   proto.ColUUID
	src, part            proto.ColUInt32
	offset, first, last  proto.ColUInt64
	rowCount, dup, empty proto.ColUInt32
}

// NewBlock returns an empty block.
func NewBlock() *Block {
	return &Block{
		ts:         new(proto.ColDateTime64).WithPrecision(proto.PrecisionMilli),
		receivedAt: new(proto.ColDateTime64).WithPrecision(proto.PrecisionMilli),
		name:       new(proto.ColStr).LowCardinality(),
		tags:       proto.NewArray(new(proto.ColStr)),
	}
}

// Rows is how many rows the block has.
func (b *Block) Rows() int { return len(b.part) }

// Append adds the event of a record as it lies on the topic.
func (b *Block) Append(record []byte, d *codec.Decoder) error {
	var ev codec.Event
	if err := d.DecodeRecord(record, &ev); err != nil {
		return fmt.Errorf("decode a record: %s", err.AppendText(nil))
	}
	b.ts.AppendRaw(proto.DateTime64(ev.Timestamp))
	b.receivedAt.AppendRaw(proto.DateTime64(ev.ReceivedAt))
	b.name.Append(string(ev.Name))
	b.channel.AppendBytes(ev.Channel)
	b.campaign.AppendBytes(ev.CampaignID)
	b.user.AppendBytes(ev.UserID)
	b.metadata.AppendBytes(ev.Metadata)
	tags := make([]string, len(ev.Tags))
	for i, t := range ev.Tags {
		tags[i] = string(t)
	}
	b.tags.Append(tags)
	b.id = append(b.id, uuid.UUID(codec.ID(ev.EventID)))
	b.src, b.part, b.offset = append(b.src, 1), append(b.part, 0), append(b.offset, uint64(b.Rows()))
	b.first, b.last = append(b.first, 0), append(b.last, 0)
	b.rowCount, b.dup, b.empty = append(b.rowCount, 0), append(b.dup, 0), append(b.empty, 0)
	return nil
}

// ready is a column in wire form: building dictionaries and copying values is no work
// of a ready block.
type ready struct {
	typ         proto.ColumnType
	rows        int
	state, data []byte
}

// readyOf encodes c now.
func readyOf(name string, c proto.ColInput) proto.InputColumn {
	var state, data proto.Buffer
	if s, ok := c.(proto.StateEncoder); ok {
		s.EncodeState(&state)
	}
	c.EncodeColumn(&data)
	return proto.InputColumn{Name: name, Data: &ready{c.Type(), c.Rows(), state.Buf, data.Buf}}
}

func (r *ready) Type() proto.ColumnType       { return r.typ }
func (r *ready) Rows() int                    { return r.rows }
func (r *ready) EncodeState(b *proto.Buffer)  { b.PutRaw(r.state) }
func (r *ready) EncodeColumn(b *proto.Buffer) { b.PutRaw(r.data) }
func (r *ready) WriteColumn(w *proto.Writer)  { w.ChainWrite(r.data) }

// Input are the columns for ch-go, complete: nothing is left to prepare.
func (b *Block) Input() (proto.Input, error) {
	err := b.name.Prepare()
	return proto.Input{
		readyOf("ts", b.ts), readyOf("event_name", b.name), readyOf("channel", &b.channel),
		readyOf("campaign_id", &b.campaign), readyOf("user_id", &b.user), readyOf("tags", b.tags),
		readyOf("metadata", &b.metadata), readyOf("event_id", &b.id), readyOf("received_at", b.receivedAt),
		readyOf("_src", &b.src), readyOf("_part", &b.part), readyOf("_offset", &b.offset),
		readyOf("_first", &b.first), readyOf("_last", &b.last), readyOf("_rows", &b.rowCount),
		readyOf("_dup", &b.dup), readyOf("_dead", &b.empty),
	}, err
}

// Fill inserts the block, one INSERT each time, until n rows are in, and returns
// how long that took. So many connections do so side by side.
func (b *Block) Fill(ctx context.Context, pool *clickhouse.Pool, n int64, connections int) (time.Duration, error) {
	input, err := b.Input()
	if err != nil {
		return 0, err
	}
	var conns []*ch.Client
	for range connections {
		conn, err := pool.Dial(ctx)
		if err != nil {
			return 0, err
		}
		defer conn.Close()
		conns = append(conns, conn)
	}
	var filled atomic.Int64
	side, ctx := errgroup.WithContext(ctx)
	began := time.Now()
	for _, conn := range conns {
		side.Go(func() error {
			for filled.Add(int64(b.Rows()))-int64(b.Rows()) < n {
				if err := conn.Do(ctx, ch.Query{Body: input.Into("events"), Input: input}); err != nil {
					return fmt.Errorf("insert a ready block of %d rows: %w", b.Rows(), err)
				}
			}
			return nil
		})
	}
	err = side.Wait()
	return time.Since(began), err
}
