package clickhouse

import (
	"strings"

	"github.com/ClickHouse/ch-go/proto"
)

// revision is the protocol version announced: the highest both Go clients
// speak. What newer servers negotiate above it (chunked packets, sparse column
// states) is thereby never asked of us.
const revision = 54460

// oldestRevision has block info, settings as strings and the rest of what the
// packets below take for granted; ClickHouse of 2020 and its clients have it.
const oldestRevision = 54429

// Bounds for what a packet may carry in memory.
const (
	maxName     = 64 << 10
	maxValue    = 1 << 20
	maxQuery    = 64 << 20 // an INSERT with inline values
	maxSettings = 4096
)

// decodeHello reads a ClientHello after its code.
func decodeHello(c *cursor) (proto.ClientHello, error) {
	var h proto.ClientHello
	d := decoder{c: c}
	h.Name = d.string(maxName)
	h.Major = d.int()
	h.Minor = d.int()
	h.ProtocolVersion = d.int()
	h.Database = d.string(maxName)
	h.User = d.string(maxName)
	h.Password = d.string(maxName)
	return h, d.err
}

// A clientQuery is what a Query packet asks for.
type clientQuery struct {
	id         string
	body       string
	compressed bool
	settings   []proto.Setting
	params     []parameter
}

// decodeQuery reads a Query packet after its code. ch-go has the same decoder,
// but it allocates what a length says before the bytes arrive.
func decodeQuery(c *cursor, version int) (clientQuery, error) {
	var q clientQuery
	d := decoder{c: c}
	q.id = d.string(maxName) // the library makes its own
	d.clientInfo(version)
	q.settings = d.settings()
	if proto.FeatureInterServerSecret.In(version) {
		d.string(maxName)
	}
	d.uvarint() // stage
	q.compressed = d.uvarint() != 0
	q.body = d.string(maxQuery)
	if proto.FeatureParameters.In(version) {
		for _, s := range d.settings() {
			q.params = append(q.params, parameter{s.Key, unquoteParameter(s.Value)})
		}
	}
	return q, d.err
}

// unquoteParameter undoes one level of quoting: clients send values as string
// literals whose content is in Escaped form.
func unquoteParameter(v string) string {
	if len(v) < 2 || v[0] != '\'' || v[len(v)-1] != '\'' {
		return v
	}
	in := v[1 : len(v)-1]
	out := make([]byte, 0, len(in))
	for i := 0; i < len(in); i++ {
		if in[i] == '\\' && i+1 < len(in) {
			i++
			if k := strings.IndexByte("ntr0bf", in[i]); k >= 0 {
				out = append(out, "\n\t\r\x00\b\f"[k])
				continue
			}
		}
		out = append(out, in[i])
	}
	return string(out)
}

// A decoder reads fields until the first error, which it keeps.
type decoder struct {
	c   *cursor
	err error
}

func (d *decoder) string(limit uint64) (s string) {
	if d.err == nil {
		s, d.err = d.c.string(limit)
	}
	return s
}

func (d *decoder) uvarint() (v uint64) {
	if d.err == nil {
		v, d.err = d.c.uvarint()
	}
	return v
}

func (d *decoder) int() int { return int(min(d.uvarint(), 1<<31)) }

func (d *decoder) byte() (b byte) {
	if d.err == nil {
		b, d.err = d.c.byte()
	}
	return b
}

func (d *decoder) skip(n uint64) {
	if d.err == nil {
		d.err = d.c.skip(n)
	}
}

func (d *decoder) settings() []proto.Setting {
	var out []proto.Setting
	for d.err == nil {
		key := d.string(maxName)
		if key == "" {
			break
		}
		flags := d.uvarint()
		s := proto.Setting{Key: key, Value: d.string(maxValue), Important: flags&1 != 0, Custom: flags&2 != 0}
		if out = append(out, s); len(out) > maxSettings {
			d.err = malformed("more than %d settings", maxSettings)
		}
	}
	return out
}

// clientInfo walks who asks; nothing here is trusted or used.
func (d *decoder) clientInfo(version int) {
	if d.byte() == 0 {
		return // no query kind: nothing follows
	}
	d.string(maxName) // initial user
	d.string(maxName) // initial query id
	d.string(maxName) // initial address
	if proto.FeatureQueryStartTime.In(version) {
		d.skip(8)
	}
	if i := d.byte(); d.err == nil && proto.Interface(i) != proto.InterfaceTCP {
		d.err = malformed("client interface %d is not TCP", i)
		return
	}
	d.string(maxName) // OS user
	d.string(maxName) // host
	d.string(maxName) // client name
	d.uvarint()       // major
	d.uvarint()       // minor
	d.uvarint()       // revision
	d.string(maxName) // quota key
	if proto.FeatureDistributedDepth.In(version) {
		d.uvarint()
	}
	d.uvarint() // patch
	if proto.FeatureOpenTelemetry.In(version) && d.byte() == 1 {
		d.skip(16 + 8)
		d.string(maxName)
		d.skip(1)
	}
	if proto.FeatureParallelReplicas.In(version) {
		d.uvarint()
		d.uvarint()
		d.uvarint()
	}
}
