package clickhouse

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"unsafe"

	"github.com/ebitengine/purego"
)

// ErrNoLibrary says that libchdb is not installed.
var ErrNoLibrary = errors.New("the ClickHouse library is not installed: run `make setup`, or set CHDB_LIBRARY to the path of libchdb.so")

// libraryName is what every chdb package calls the file, on macOS too.
const libraryName = "libchdb.so"

// FindLibrary returns the path of libchdb: $CHDB_LIBRARY, else the file beside
// the executable, else what `make setup` installs in this directory or one of
// its parents (so tests find it from a package's folder), where it is this user's or
// root's: a parent may be a directory in which everybody writes, as /tmp is.
func FindLibrary() (string, error) {
	if p := os.Getenv("CHDB_LIBRARY"); p != "" {
		if !isFile(p) {
			return "", fmt.Errorf("CHDB_LIBRARY=%s: no such file", p)
		}
		return p, nil
	}
	if exe, err := os.Executable(); err == nil {
		if p := filepath.Join(filepath.Dir(exe), libraryName); isFile(p) {
			return p, nil
		}
	}
	dir, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the ClickHouse library: %w", err)
	}
	strange := ErrNoLibrary
	for {
		for _, p := range librariesUnder(dir) {
			switch {
			case !isFile(p):
			case isOurs(p):
				return p, nil
			default:
				strange = fmt.Errorf("%w (%s belongs to another user)", ErrNoLibrary, p)
			}
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", strange
		}
		dir = parent
	}
}

// librariesUnder is where make setup may have put the library.
func librariesUnder(dir string) []string {
	// It installs the package of Linux on x86-64; another's has another name.
	found, _ := filepath.Glob(filepath.Join(dir, "internal", "embedded", "clickhouse", "engine",
		"node_modules", "@chdb", "lib-*", libraryName))
	return append([]string{filepath.Join(dir, "bin", libraryName)}, found...)
}

func isOurs(p string) bool {
	fi, err := os.Stat(p)
	if err != nil {
		return false
	}
	of, ok := fi.Sys().(*syscall.Stat_t)
	return ok && (of.Uid == 0 || int(of.Uid) == os.Geteuid())
}

func isFile(p string) bool {
	fi, err := os.Stat(p)
	return err == nil && fi.Mode().IsRegular()
}

// library is libchdb's C interface. Every function blocks its thread until the
// engine is done, which Go's scheduler treats like a system call.
type library struct {
	connect func(argc int32, argv unsafe.Pointer) unsafe.Pointer
	close   func(conn unsafe.Pointer)

	query func(conn, sql unsafe.Pointer, sqlLen uintptr, format unsafe.Pointer, formatLen uintptr,
		names, nameLens, values, valueLens unsafe.Pointer, count uintptr) unsafe.Pointer
	stream func(conn, sql unsafe.Pointer, sqlLen uintptr, format unsafe.Pointer, formatLen uintptr,
		names, nameLens, values, valueLens unsafe.Pointer, count uintptr) unsafe.Pointer
	fetch   func(conn, stream unsafe.Pointer) unsafe.Pointer
	cancel  func(conn, stream unsafe.Pointer)
	destroy func(result unsafe.Pointer)

	failure   func(result unsafe.Pointer) string
	buffer    func(result unsafe.Pointer) unsafe.Pointer
	length    func(result unsafe.Pointer) uintptr
	rowsRead  func(result unsafe.Pointer) uint64
	bytesRead func(result unsafe.Pointer) uint64

	setSignalHandlers func(enabled bool)

	signals signalActions
	// connecting guards connect: it resets signal handlers, and two at once
	// would each save the other's.
	connecting sync.Mutex
}

// loadLibrary maps libchdb into this process, where it stays: its threads and
// exit handlers cannot be taken out again.
func loadLibrary(path string) (*library, error) {
	l := &library{}
	if err := l.signals.save(); err != nil {
		return nil, fmt.Errorf("read the signal actions before loading %s: %w", path, err)
	}
	handle, err := purego.Dlopen(path, purego.RTLD_NOW|purego.RTLD_LOCAL)
	if err != nil {
		return nil, fmt.Errorf("load %s: %w", path, err)
	}
	for name, fn := range map[string]any{
		"chdb_connect":                     &l.connect,
		"chdb_close_conn":                  &l.close,
		"chdb_query_with_params_n":         &l.query,
		"chdb_stream_query_with_params_n":  &l.stream,
		"chdb_stream_fetch_result":         &l.fetch,
		"chdb_stream_cancel_query":         &l.cancel,
		"chdb_destroy_query_result":        &l.destroy,
		"chdb_result_error":                &l.failure,
		"chdb_result_buffer":               &l.buffer,
		"chdb_result_length":               &l.length,
		"chdb_result_storage_rows_read":    &l.rowsRead,
		"chdb_result_storage_bytes_read":   &l.bytesRead,
		"chdb_set_signal_handlers_enabled": &l.setSignalHandlers,
	} {
		sym, err := purego.Dlsym(handle, name)
		if err != nil {
			return nil, fmt.Errorf("load %s: no symbol %s: is it libchdb 26.5 or newer? %w", path, name, err)
		}
		purego.RegisterFunc(fn, sym)
	}
	l.setSignalHandlers(false)
	return l, l.signals.restore()
}

// open makes a connection, which is a ClickHouse session of its own. The first
// one starts the engine on the path among the arguments.
func (l *library) open(argv []string) (unsafe.Pointer, error) {
	args := make([]*byte, len(argv)+1)
	for i, a := range argv {
		args[i] = unsafe.SliceData(append([]byte(a), 0))
	}
	l.connecting.Lock()
	defer l.connecting.Unlock()
	conn := l.connect(int32(len(argv)), unsafe.Pointer(unsafe.SliceData(args)))
	runtime.KeepAlive(args)
	// Connecting puts the fatal signals back to their default action, under
	// which a nil dereference in Go would kill the process.
	if err := l.signals.restore(); err != nil {
		return nil, fmt.Errorf("put the signal actions back: %w", err)
	}
	if conn == nil {
		return nil, errors.New("the library refused the connection (is another process using the directory?)")
	}
	return conn, nil
}
