package clickhouse

import (
	"fmt"
	"strconv"
	"strings"
)

// A kind is how a column's bytes are laid out in the Native format. The walker
// needs the layout only: where a column ends, never what its values mean.
type kind uint8

const (
	kindFixed    kind = iota // size bytes a row
	kindString               // varint length and bytes a row
	kindArray                // 8-byte end offsets, then the elements
	kindNullable             // one byte a row, then the values
	kindTuple                // the elements one after another
	kindMap                  // laid out as Array(Tuple(key, value))
	kindLowCard              // dictionary, then an index a row
)

type columnType struct {
	kind  kind
	size  uint64
	elems []*columnType
}

// Both limits are far above any table and keep a hostile name cheap: the
// parser recurses once per level and touches each byte once per level.
const (
	maxTypeDepth  = 32
	maxTypeLength = 64 << 10
)

var fixedSizes = map[string]uint64{
	"Bool": 1, "Nothing": 1,
	"Int8": 1, "Int16": 2, "Int32": 4, "Int64": 8, "Int128": 16, "Int256": 32,
	"UInt8": 1, "UInt16": 2, "UInt32": 4, "UInt64": 8, "UInt128": 16, "UInt256": 32,
	"Float32": 4, "Float64": 8, "BFloat16": 2,
	"Date": 2, "Date32": 4, "DateTime": 4, "DateTime32": 4, "DateTime64": 8, "Time": 4, "Time64": 8,
	"UUID": 16, "IPv4": 4, "IPv6": 16,
	"Enum8": 1, "Enum16": 2,
	"Decimal32": 4, "Decimal64": 8, "Decimal128": 16, "Decimal256": 32,
}

var (
	typeFloat64    = &columnType{kind: kindFixed, size: 8}
	typePoint      = &columnType{kind: kindTuple, elems: []*columnType{typeFloat64, typeFloat64}}
	typeRing       = arrayOf(typePoint)
	typePolygon    = arrayOf(typeRing)
	geometricTypes = map[string]*columnType{
		"Point": typePoint, "Ring": typeRing, "LineString": typeRing, "Polygon": typePolygon,
		"MultiLineString": typePolygon, "MultiPolygon": arrayOf(typePolygon),
	}
)

func arrayOf(t *columnType) *columnType {
	return &columnType{kind: kindArray, elems: []*columnType{t}}
}

// parseType reads a ClickHouse type name. Types whose Native layout depends on
// the data (AggregateFunction, Variant, Dynamic, JSON) are refused: states live
// inside tables and leave them through -Merge functions.
func parseType(name string) (*columnType, error) {
	if len(name) > maxTypeLength {
		return nil, malformed("a column type name of %d bytes", len(name))
	}
	return parseTypeAt(name, 0)
}

func parseTypeAt(s string, depth int) (*columnType, error) {
	if depth > maxTypeDepth {
		return nil, malformed("a column type is nested deeper than %d levels", maxTypeDepth)
	}
	s = strings.TrimSpace(s)
	name, args, err := splitType(s)
	if err != nil {
		return nil, err
	}
	if n, ok := fixedSizes[name]; ok {
		return &columnType{kind: kindFixed, size: n}, nil
	}
	if t, ok := geometricTypes[name]; ok {
		return t, nil
	}
	if strings.HasPrefix(name, "Interval") {
		return &columnType{kind: kindFixed, size: 8}, nil
	}
	switch name {
	case "String":
		return &columnType{kind: kindString}, nil
	case "FixedString":
		return parseFixedString(s, args)
	case "Decimal":
		return parseDecimal(s, args)
	case "Array", "Nullable", "LowCardinality":
		return parseWrapper(name, s, args, depth)
	case "Map":
		return parseMap(s, args, depth)
	case "Tuple":
		return parseTuple(s, args, depth)
	case "Nested":
		t, err := parseTuple(s, args, depth)
		if err != nil {
			return nil, err
		}
		return arrayOf(t), nil
	case "SimpleAggregateFunction":
		if len(args) < 2 {
			return nil, malformedType(s)
		}
		return parseTypeAt(args[len(args)-1], depth+1)
	}
	return nil, unwalkableType(s)
}

func parseWrapper(name, s string, args []string, depth int) (*columnType, error) {
	if len(args) != 1 {
		return nil, malformedType(s)
	}
	elem, err := parseTypeAt(args[0], depth+1)
	if err != nil {
		return nil, err
	}
	kinds := map[string]kind{"Array": kindArray, "Nullable": kindNullable, "LowCardinality": kindLowCard}
	t := &columnType{kind: kinds[name], elems: []*columnType{elem}}
	if t.kind == kindLowCard {
		// The dictionary of LowCardinality(Nullable(T)) holds plain T: NULL is
		// its entry 0.
		if elem.kind == kindNullable {
			t.elems[0] = elem.elems[0]
		}
		if k := t.elems[0].kind; k != kindFixed && k != kindString {
			return nil, malformedType(s)
		}
	}
	return t, nil
}

func parseMap(s string, args []string, depth int) (*columnType, error) {
	if len(args) != 2 {
		return nil, malformedType(s)
	}
	t := &columnType{kind: kindMap}
	for _, a := range args {
		e, err := parseTypeAt(a, depth+1)
		if err != nil {
			return nil, err
		}
		t.elems = append(t.elems, e)
	}
	return t, nil
}

func parseTuple(s string, args []string, depth int) (*columnType, error) {
	if len(args) == 0 {
		return nil, unwalkableType(s)
	}
	t := &columnType{kind: kindTuple}
	for _, a := range args {
		e, err := parseTypeAt(dropElementName(a), depth+1)
		if err != nil {
			return nil, err
		}
		t.elems = append(t.elems, e)
	}
	return t, nil
}

func parseFixedString(s string, args []string) (*columnType, error) {
	if len(args) != 1 {
		return nil, malformedType(s)
	}
	n, err := strconv.ParseUint(args[0], 10, 24)
	if err != nil || n == 0 {
		return nil, malformedType(s)
	}
	return &columnType{kind: kindFixed, size: n}, nil
}

func parseDecimal(s string, args []string) (*columnType, error) {
	if len(args) == 0 {
		return nil, malformedType(s)
	}
	p, err := strconv.ParseUint(args[0], 10, 8)
	if err != nil || p == 0 || p > 76 {
		return nil, malformedType(s)
	}
	size := uint64(32)
	switch {
	case p <= 9:
		size = 4
	case p <= 18:
		size = 8
	case p <= 38:
		size = 16
	}
	return &columnType{kind: kindFixed, size: size}, nil
}

func malformedType(s string) error {
	return &exception{code: codeUnknownType, message: fmt.Sprintf("Malformed column type %q", clip(s))}
}

func unwalkableType(s string) error {
	return &exception{code: codeNotImplemented,
		message: fmt.Sprintf("Type %q cannot travel over this server's native protocol; convert it in the query", clip(s))}
}

func clip(s string) string {
	const enough = 200
	if len(s) > enough {
		return s[:enough] + "…"
	}
	return s
}

// splitType cuts `Name(a, b(c), 'd, e')` into its name and top-level arguments.
func splitType(s string) (name string, args []string, err error) {
	open := strings.IndexByte(s, '(')
	if open < 0 {
		return s, nil, nil
	}
	if s[len(s)-1] != ')' {
		return "", nil, malformedType(s)
	}
	name, body := strings.TrimSpace(s[:open]), s[open+1:len(s)-1]
	level, start := 0, 0
	for i := 0; i < len(body); i++ {
		switch c := body[i]; c {
		case '\'', '`', '"':
			if i = skipQuoted(body, i); i < 0 {
				return "", nil, malformedType(s)
			}
		case '(':
			level++
		case ')':
			if level--; level < 0 {
				return "", nil, malformedType(s)
			}
		case ',':
			if level == 0 {
				args = append(args, strings.TrimSpace(body[start:i]))
				start = i + 1
			}
		}
	}
	if level != 0 {
		return "", nil, malformedType(s)
	}
	if rest := strings.TrimSpace(body[start:]); rest != "" || len(args) > 0 {
		args = append(args, rest)
	}
	return name, args, nil
}

// skipQuoted returns the index of the quote that closes the one at i, or -1.
func skipQuoted(s string, i int) int {
	q := s[i]
	for i++; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case q:
			if i+1 < len(s) && s[i+1] == q {
				i++
				continue
			}
			return i
		}
	}
	return -1
}

// dropElementName turns a tuple element `name Type` into `Type`: a blank outside
// parentheses and quotes separates the two.
func dropElementName(s string) string {
	level := 0
	for i := 0; i < len(s); i++ {
		switch s[i] {
		case '\'', '`', '"':
			if i = skipQuoted(s, i); i < 0 {
				return s
			}
		case '(':
			level++
		case ')':
			level--
		case ' ':
			if level == 0 {
				return strings.TrimSpace(s[i+1:])
			}
		}
	}
	return s
}
