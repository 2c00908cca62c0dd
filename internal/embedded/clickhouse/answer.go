package clickhouse

import (
	"net"
	"strings"
	"time"

	"github.com/ClickHouse/ch-go/compress"
	"github.com/ClickHouse/ch-go/proto"
)

// blockInfo is what precedes a block on the wire: no overflow rows, bucket -1.
var blockInfo = []byte{1, 0, 2, 0xff, 0xff, 0xff, 0xff, 0}

// smallBlock goes through the packet buffer; larger ones are written from where
// the engine made them.
const smallBlock = 16 << 10

// sendBlock puts one block of the library's in line as a Data packet. A large
// one is written at once, since its bytes are only borrowed.
func (s *session) sendBlock(block []byte) error {
	start := len(s.out.Buf)
	proto.ServerCodeData.Encode(&s.out)
	s.out.PutString("") // table name
	var err error
	switch {
	case s.zip != nil:
		err = s.compressBlock(block)
	case len(block) <= smallBlock:
		s.out.PutRaw(blockInfo)
		err = s.eachSpan(block, func(p []byte) error {
			s.out.PutRaw(p)
			return nil
		})
	default:
		s.out.PutRaw(blockInfo)
		err = s.writeBlock(block)
	}
	if err != nil && len(s.out.Buf) > start {
		s.out.Buf = s.out.Buf[:start] // an exception may still follow
	}
	return err
}

// eachSpan passes a block of the library's on as this client is to get it.
func (s *session) eachSpan(block []byte, keep func([]byte) error) error {
	flag := flagNone
	if proto.FeatureCustomSerialization.In(s.version) {
		flag = flagAdd
	}
	c := over(block)
	c.keep = keep
	if _, err := s.walker.block(c, flag); err != nil {
		return err
	}
	if len(s.walker.columns) == 0 {
		return keep(emptyBlock)
	}
	if c.r != c.w {
		return &exception{code: codeUnknown, message: "The engine sent more than one block at once"}
	}
	return nil
}

// writeBlock sends the packets in line and the block with one vectored write.
func (s *session) writeBlock(block []byte) error {
	spans := net.Buffers{s.out.Buf}
	first := true
	err := s.eachSpan(block, func(p []byte) error {
		if first {
			p = append([]byte(nil), p...) // the walker's own, which it reuses
			first = false
		}
		spans = append(spans, p)
		return nil
	})
	if err != nil {
		return err
	}
	s.writing.Lock()
	defer s.writing.Unlock()
	if err := s.conn.SetWriteDeadline(time.Now().Add(transferTimeout)); err != nil {
		return err
	}
	_, err = spans.WriteTo(s.conn)
	s.out.Reset()
	return err
}

func (s *session) compressBlock(block []byte) error {
	s.plain = append(s.plain[:0], blockInfo...)
	frame := func(p []byte) error {
		if err := s.zip.Compress(p); err != nil {
			return err
		}
		s.out.PutRaw(s.zip.Data)
		return nil
	}
	err := s.eachSpan(block, func(p []byte) error {
		for len(p) > 0 {
			n := min(len(p), outFrame-len(s.plain))
			s.plain = append(s.plain, p[:n]...)
			p = p[n:]
			if len(s.plain) == outFrame {
				if err := frame(s.plain); err != nil {
					return err
				}
				s.plain = s.plain[:0]
			}
		}
		return nil
	})
	if err != nil || len(s.plain) == 0 {
		return err
	}
	return frame(s.plain)
}

// compressor is LZ4 unless the query asks for ZSTD, as on a server, or for none.
func (s *session) compressor(q *clientQuery) *compress.Writer {
	if !q.compressed {
		return nil
	}
	for _, v := range q.settings {
		if v.Key == "network_compression_method" && strings.EqualFold(v.Value, "ZSTD") {
			if s.zstd == nil {
				s.zstd = compress.NewWriter(compress.LevelZero, compress.ZSTD)
			}
			return s.zstd
		}
	}
	if s.lz4 == nil {
		s.lz4 = compress.NewWriter(compress.LevelZero, compress.LZ4)
	}
	return s.lz4
}

// sendHeader sends a block of the columns without rows.
func (s *session) sendHeader(columns []column) error { return s.sendBlock(encodeHeader(columns)) }

// encodeHeader makes a Native block of columns without rows.
func encodeHeader(columns []column) []byte {
	var b proto.Buffer
	b.PutInt(len(columns))
	b.PutInt(0)
	for _, c := range columns {
		b.PutString(c.name)
		b.PutString(c.typ)
	}
	return b.Buf
}
