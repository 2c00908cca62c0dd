package server

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/pprof"
	"runtime"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// NewRegistry returns a registry with what every Go service exports (runtime,
// process, module versions) and edge_build_info.
func NewRegistry(version, commit string) *prometheus.Registry {
	reg := prometheus.NewRegistry()
	info := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "edge_build_info",
		Help:        "Always 1; the labels say what is running.",
		ConstLabels: prometheus.Labels{"version": version, "commit": commit, "go": runtime.Version()},
	}, func() float64 { return 1 })
	reg.MustRegister(
		info,
		collectors.NewGoCollector(collectors.WithGoCollectorRuntimeMetrics(
			collectors.MetricsGC, collectors.MetricsMemory, collectors.MetricsScheduler)),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		collectors.NewBuildInfoCollector(),
	)
	return reg
}

// AdminHandler serves the admin listener: GET /metrics in Prometheus or
// OpenMetrics text, whichever is asked for, /debug/pprof/, GET /health, and
// /loglevel, which PUT changes for the running process. It has no keys of its
// own: bind it to localhost or a network only operators reach.
func AdminHandler(g prometheus.Gatherer, level *slog.LevelVar) http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(g, promhttp.HandlerOpts{
		EnableOpenMetrics: true,
		// One broken metric must not hide the others during an incident.
		ErrorHandling: promhttp.ContinueOnError,
	}))
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("POST /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("GET /health", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"status": "healthy"})
	})
	mux.HandleFunc("GET /loglevel", func(w http.ResponseWriter, _ *http.Request) {
		writeJSON(w, http.StatusOK, map[string]string{"level": strings.ToLower(level.Level().String())})
	})
	mux.HandleFunc("PUT /loglevel", func(w http.ResponseWriter, r *http.Request) { putLevel(w, r, level) })
	return mux
}

// putLevel takes the name of a level as plain text or as {"level":"debug"}.
func putLevel(w http.ResponseWriter, r *http.Request, level *slog.LevelVar) {
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 256))
	name := strings.TrimSpace(string(raw))
	if strings.HasPrefix(name, "{") {
		var body struct{ Level string }
		err = json.Unmarshal(raw, &body)
		name = body.Level
	}
	var l slog.Level
	if err != nil || l.UnmarshalText([]byte(name)) != nil {
		writeJSON(w, http.StatusBadRequest, map[string]string{"error": "level must be one of debug, info, warn, error"})
		return
	}
	level.Set(l)
	writeJSON(w, http.StatusOK, map[string]string{"level": strings.ToLower(l.String())})
}

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	// The client is gone if this fails, and nobody is left to tell.
	_ = json.NewEncoder(w).Encode(v)
}
