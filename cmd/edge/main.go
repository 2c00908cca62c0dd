// Command edge takes product events over HTTP, makes them durable in Kafka and
// stores each exactly once in ClickHouse. All configuration is environment
// variables; see edge config.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/term"

	"edge/internal/logging"
)

const usage = `edge ingests events over HTTP into Kafka and ClickHouse.

usage: edge [command]

  serve       run the roles in ROLES (the default)
  migrate     bring the ClickHouse schema to this version and exit
  replay      post an NDJSON file (plain or .gz) of events: edge replay FILE
  verify      prove that everything accepted is stored once; exit status 0 when so
  replay-dlq  put dead letters back; --list shows them, a file brings them repaired
  health      ask the running server; exit status 0 when it is healthy
  key         make an API key: edge key new write|read [id]
  config      print the effective settings
  kafka       run the embedded broker alone
  clickhouse  run the embedded ClickHouse engine alone
  version     print the version

Settings are environment variables; edge config lists them.
`

// Exit statuses: 1 something failed, 2 it was asked wrongly.
const (
	exitFailed = 1
	exitUsage  = 2
)

func main() { os.Exit(command(os.Args[1:], os.Stdout, os.Stderr)) }

// subcommand is one of those that usage lists.
type subcommand struct {
	run     func(*invocation) error
	args    bool     // it takes arguments
	noFiles bool     // it reads no file that a setting names
	ignores []string // settings of files that it has no use for
	serves  bool     // it runs until it is stopped
	hangup  bool     // it sees to SIGHUP itself, which stops every other
}

// clientFiles are about those who come to the public listener. The server that runs may
// have read them before they were broken: who looks into that needs the other commands.
var clientFiles = []string{"KEYS_FILE", "SERVER_TLS_CERT", "SERVER_TLS_KEY"}

var subcommands = map[string]subcommand{
	"serve":      {run: serve, serves: true, hangup: true},
	"migrate":    {run: migrate, ignores: clientFiles},
	"replay":     {run: replay, args: true, ignores: clientFiles[:1]}, // it knows the server by its certificate
	"verify":     {run: verify, ignores: clientFiles},
	"replay-dlq": {run: replayDead, args: true, ignores: clientFiles},
	"health":     {run: health, noFiles: true}, // the server it asks has read them
	"key":        {run: keyCommand, args: true, noFiles: true},
	"config":     {run: func(in *invocation) error { _, err := fmt.Fprint(in.out, in.cfg); return err }},
	"kafka":      {run: runBroker, serves: true, ignores: clientFiles},
	"clickhouse": {run: runEngine, serves: true, ignores: clientFiles},
	"version": {noFiles: true, run: func(in *invocation) error {
		v, c := buildVersion()
		_, err := fmt.Fprintln(in.out, "edge", v, c)
		return err
	}},
}

// command runs one subcommand and returns the exit status.
func command(args []string, out, errOut io.Writer) int {
	name := "serve"
	if len(args) > 0 {
		name, args = args[0], args[1:]
	}
	if name == "--version" || name == "-v" {
		name = "version"
	}
	c, ok := subcommands[name]
	switch {
	case name == "help", isHelp(name):
		fmt.Fprint(out, usage)
		return 0
	case slices.ContainsFunc(args, isHelp):
		fmt.Fprint(out, helpOf(name))
		return 0
	case !ok:
		fmt.Fprintf(errOut, "edge: unknown command %q\n\n%s", name, usage)
		return exitUsage
	case len(args) > 0 && !c.args:
		fmt.Fprintf(errOut, "edge: %s takes no argument, and got %q\n", name, args[0])
		return exitUsage
	}
	in := &invocation{args: args, out: out}
	if err := in.configure(c); err != nil {
		for line := range strings.Lines(err.Error()) {
			fmt.Fprint(errOut, "edge: ", line)
		}
		fmt.Fprintln(errOut)
		return exitUsage
	}
	closeLog := in.openLog(errOut)
	ended := in.heedSignals(c)
	err := c.run(in)
	closeLog()
	ended()
	var asked *usageError
	switch {
	case errors.As(err, &asked):
		fmt.Fprintln(errOut, "edge:", err)
		return exitUsage
	case err != nil:
		fmt.Fprintln(errOut, "edge:", err)
		return exitFailed
	}
	return 0
}

// configure reads the settings.
func (in *invocation) configure(c subcommand) (err error) {
	load := loadConfig
	if c.noFiles {
		load = parseConfig
	}
	env := environ()
	for _, name := range c.ignores {
		delete(env, name)
	}
	if in.cfg, err = load(env); err != nil {
		return err
	}
	if in.level.UnmarshalText([]byte(in.cfg.LogLevel)) != nil {
		return fmt.Errorf("LOG_LEVEL is %q; it may be debug, info, warn or error", in.cfg.LogLevel)
	}
	return nil
}

// openLog makes in's log, which goes to w and waits for nobody who reads it.
func (in *invocation) openLog(w io.Writer) (closeLog func()) {
	terminal := isTerminal(w)
	direct := slog.New(logHandler(w, terminal, &in.level))
	lines := logging.NewWriter(w, func(dropped int64) {
		direct.Warn("log lines dropped: they were not read fast enough", "component", "logging", "lines", dropped)
	})
	limiter := logging.New(logHandler(lines, terminal, &in.level), logging.Period)
	in.log = slog.New(limiter)
	slog.SetDefault(in.log) // for what libraries say by themselves
	return func() {
		limiter.Flush()
		lines.Close(time.Second)
	}
}

// heedSignals makes in's context, which ends when one of the signals comes that stop c.
func (in *invocation) heedSignals(c subcommand) (ended func()) {
	ends := []os.Signal{os.Interrupt, syscall.SIGTERM}
	if !c.hangup && !signal.Ignored(syscall.SIGHUP) {
		ends = append(ends, syscall.SIGHUP)
	}
	if c.serves {
		signal.Ignore(syscall.SIGPIPE) // who reads the log may go away
	}
	ctx, stop := context.WithCancel(context.Background())
	in.ctx = ctx
	forget := stopOnSignal(stop, ends...)
	return func() {
		forget()
		stop()
	}
}

// stopOnSignal calls stop at the first of the signals. The second ends the process at once,
// as soon as anyone can know that the first has come. forget is for who ends without.
func stopOnSignal(stop func(), ends ...os.Signal) (forget func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, ends...)
	go func() {
		if _, ok := <-signals; !ok {
			return
		}
		signal.Stop(signals)
		select {
		case second, ok := <-signals: // it came between
			if self, err := os.FindProcess(os.Getpid()); ok && err == nil {
				_ = self.Signal(second)
			}
		default:
		}
		stop()
	}()
	return func() {
		signal.Stop(signals)
		close(signals)
	}
}

func isHelp(arg string) bool { return arg == "-h" || arg == "--help" }

// helpOf is what usage has to say of one command; all of it if that is none.
func helpOf(name string) string {
	for line := range strings.Lines(usage) {
		if what, ok := strings.CutPrefix(line, "  "+name+" "); ok {
			return "edge " + name + ": " + strings.TrimSpace(what) + "\n\nedge help lists the commands, edge config the settings.\n"
		}
	}
	return usage
}

// isFileName refuses what is an option elsewhere; a file of such a name is ./-name.
func isFileName(arg string) bool { return arg != "" && arg[0] != '-' }

// invocation is what every subcommand gets.
type invocation struct {
	ctx   context.Context
	cfg   config
	args  []string
	out   io.Writer
	log   *slog.Logger
	level slog.LevelVar
}

type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func environ() map[string]string {
	m := make(map[string]string)
	for _, kv := range os.Environ() {
		k, v, _ := strings.Cut(kv, "=")
		m[k] = v
	}
	return m
}

// logHandler writes text for a terminal and JSON for everything else.
func logHandler(w io.Writer, terminal bool, level *slog.LevelVar) slog.Handler {
	opts := &slog.HandlerOptions{Level: level}
	if terminal {
		return slog.NewTextHandler(w, opts)
	}
	return slog.NewJSONHandler(w, opts)
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// sinkGOGC is the GOGC of a process that is nothing but a sink, if the environment has none.
// Most of its memory are a few blocks, for which the collector's usual goal leaves as much
// room again. Where requests are served a lower one costs them time.
const sinkGOGC = 50

func (c *config) sinkAlone() bool { return slices.Equal(c.Roles, []string{roleSink}) }

func serve(in *invocation) error {
	if os.Getenv("GOGC") == "" && in.cfg.sinkAlone() {
		debug.SetGCPercent(sinkGOGC)
	}
	public, err := net.Listen("tcp", net.JoinHostPort(in.cfg.ServerHost, strconv.Itoa(int(in.cfg.ServerPort))))
	if err != nil {
		return fmt.Errorf("SERVER_HOST, SERVER_PORT: %w", err)
	}
	admin, err := net.Listen("tcp", net.JoinHostPort(in.cfg.AdminHost, strconv.Itoa(int(in.cfg.AdminPort))))
	if err != nil {
		return fmt.Errorf("ADMIN_HOST, ADMIN_PORT: %w", errors.Join(err, public.Close()))
	}
	return run(in.ctx, in.cfg, listeners{public, admin}, in.log, &in.level)
}

// version is set by the linker for a release build.
var version = ""

// buildVersion returns the version and the commit this binary was built from.
func buildVersion() (string, string) {
	v, commit := version, ""
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return v, commit
	}
	if v == "" {
		v = info.Main.Version
	}
	dirty := ""
	for _, s := range info.Settings {
		switch s.Key {
		case "vcs.revision":
			commit = s.Value
		case "vcs.modified":
			if s.Value == "true" {
				dirty = "-dirty"
			}
		}
	}
	return v, commit + dirty
}
