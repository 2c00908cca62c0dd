//go:build !linux

package clickhouse

// signalActions does nothing where rt_sigaction does not exist: a nil
// dereference then ends the child, and its parent starts another.
type signalActions struct{}

func (*signalActions) save() error    { return nil }
func (*signalActions) restore() error { return nil }
