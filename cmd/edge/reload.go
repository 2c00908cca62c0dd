package main

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"edge/internal/server"
	"edge/internal/stat"
)

// reload follows files that may change while the process runs: certificates and
// keys. What they say takes effect for new connections and requests; what they
// fail to say leaves the old in force, loudly.
//
// The files are looked at every reloadEvery, not watched: they are replaced by
// renames, symbolic links and mounts, each of which a watch sees in another way
// or not at all.
type reload struct {
	name  string // the setting that names the file, for the log and the metric
	paths []string
	load  func() error
	cert  *certificate // when that is what load loads

	seen    []os.FileInfo
	ok, bad stat.Counter
}

// reloadEvery is how long a revoked key still works. A stat of a few files
// every two seconds costs nothing.
const reloadEvery = 2 * time.Second

// look notes the files as they are and reports whether they have changed.
func (r *reload) look() (changed bool) {
	now := make([]os.FileInfo, len(r.paths))
	for i, path := range r.paths {
		now[i], _ = os.Stat(path) // a file that is away is a change, and load says so
	}
	changed = !slices.EqualFunc(r.seen, now, same)
	r.seen = now
	return changed
}

func same(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}

// again loads the files, which were looked at before.
func (r *reload) again(log *slog.Logger) {
	if err := r.load(); err != nil {
		r.bad.Inc()
		log.Error("keys or certificate not reloaded; the old ones stay in force", "setting", r.name, "err", err)
		return
	}
	r.ok.Inc()
	log.Info("reloaded", "setting", r.name)
}

// reloads are all files that are followed.
type reloads []*reload

// run follows them until ctx ends: when one changes, and all on a signal.
func (rs reloads) run(ctx context.Context, hangup <-chan os.Signal, log *slog.Logger) {
	tick := time.NewTicker(reloadEvery)
	defer tick.Stop()
	for {
		all := false
		select {
		case <-ctx.Done():
			return
		case <-hangup:
			all = true
		case <-tick.C:
		}
		for _, r := range rs {
			if r.look() || all {
				r.again(log)
			}
		}
	}
}

// Describe adds the metrics of rs to set.
func (rs reloads) Describe(set *stat.Set) {
	set.CounterVec("edge_reloads_total", "Times a file of keys or a certificate was read again, by the setting that names it.",
		[]string{"setting", "result"}, func(emit stat.Emit) {
			for _, r := range rs {
				emit(float64(r.ok.Load()), r.name, "ok")
				emit(float64(r.bad.Load()), r.name, "error")
			}
		})
	set.GaugeVec("edge_certificate_expires_timestamp_seconds", "When the certificate in use ends, in Unix seconds, by the setting that names it.",
		[]string{"setting"}, func(emit stat.Emit) {
			for _, r := range rs {
				if r.cert != nil {
					emit(float64(r.cert.current.Load().Leaf.NotAfter.Unix()), r.name)
				}
			}
		})
}

// followCertificate has own followed; nil is none.
func (a *app) followCertificate(own *certificate) error {
	if own == nil {
		return nil
	}
	return a.reloads.add(&reload{name: own.name + "_CERT", paths: []string{own.cert, own.key}, load: own.load, cert: own})
}

// newServer makes the server, with the keys of KEYS_FILE, and returns the
// listener to serve, which is a.ln.public with TLS around it when there is a
// certificate.
func (a *app) newServer(sc server.Config) (ln net.Listener, err error) {
	if sc.KeyFile, err = a.cfg.loadKeys(); err != nil {
		return nil, err
	}
	a.server = server.New(sc)
	if a.cfg.KeysFile != "" {
		err = a.reloads.add(&reload{name: "KEYS_FILE", paths: []string{a.cfg.KeysFile}, load: func() error {
			keys, err := a.cfg.loadKeys()
			if err == nil {
				a.server.SetKeyFile(keys)
			}
			return err
		}})
		if err != nil {
			return nil, err
		}
	}
	conf, own, err := a.cfg.listenTLS()
	if err != nil || own == nil {
		return a.ln.public, err
	}
	return tls.NewListener(a.ln.public, conf), a.followCertificate(own)
}

// follow keeps what was loaded from files up to date. It is called when all of
// them are loaded: SIGHUP, which without any stops the process in order, then
// means to read them again.
func (a *app) follow() {
	if len(a.reloads) == 0 {
		a.stopFollowing = func() {}
		return
	}
	a.describe(a.reloads)
	ctx, cancel := context.WithCancel(context.Background())
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	done := make(chan struct{})
	go func() {
		defer close(done)
		a.reloads.run(ctx, hangup, a.log.With("component", "reload"))
	}()
	a.stopFollowing = func() {
		signal.Stop(hangup)
		cancel()
		<-done
	}
}

// add loads r and has it followed from now on. It looks first: what changes
// during the load is found by the next look.
func (rs *reloads) add(r *reload) error {
	r.look()
	if err := r.load(); err != nil {
		return err
	}
	*rs = append(*rs, r)
	return nil
}
