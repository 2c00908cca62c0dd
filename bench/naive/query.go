package naive

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/ClickHouse/clickhouse-go/v2"
	"github.com/ClickHouse/clickhouse-go/v2/lib/driver"
)

type counted struct {
	Group  string `json:"group"`
	Events uint64 `json:"total_events"`
	Users  uint64 `json:"unique_users"`
}

type answer struct {
	EventName string    `json:"event_name"`
	Events    uint64    `json:"total_events"`
	Users     uint64    `json:"unique_users"`
	Data      []counted `json:"data"`
}

// Answer serves GET /metrics from the rows of events until ctx ends: one statement a
// question, of all channels together or by channel. Users are counted as edge's rollups
// do, so that the two can be compared.
func Answer(ctx context.Context, ln net.Listener, addr, database string) error {
	conn, err := clickhouse.Open(&clickhouse.Options{Addr: []string{addr}, Auth: clickhouse.Auth{Database: database, Username: "default"}})
	if err != nil {
		return err
	}
	defer conn.Close()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /metrics", func(w http.ResponseWriter, r *http.Request) {
		from, err1 := seconds(r, "from")
		to, err2 := seconds(r, "to")
		if err := errors.Join(err1, err2); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		a, err := ask(r.Context(), conn, r.FormValue("event_name"), from, to, r.FormValue("group_by") == "channel")
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(a)
	})
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	context.AfterFunc(ctx, func() { _ = srv.Close() })
	if err = srv.Serve(ln); errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

func seconds(r *http.Request, name string) (time.Time, error) {
	n, err := strconv.ParseInt(r.FormValue(name), 10, 64)
	return time.Unix(n, 0).UTC(), err
}

func ask(ctx context.Context, conn driver.Conn, name string, from, to time.Time, byChannel bool) (*answer, error) {
	const counts = "count() AS n, least(uniqCombined64(14)(user_id), n) FROM events WHERE event_name = ? AND ts >= ? AND ts < ?"
	a := &answer{EventName: name}
	if !byChannel {
		return a, conn.QueryRow(ctx, "SELECT "+counts, name, from, to).Scan(&a.Events, &a.Users)
	}
	rows, err := conn.Query(ctx, "SELECT grouping(channel) = 1, channel, "+counts+" GROUP BY channel WITH ROLLUP ORDER BY n DESC", name, from, to)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var all bool
		var c counted
		if err := rows.Scan(&all, &c.Group, &c.Events, &c.Users); err != nil {
			return nil, err
		}
		if all {
			a.Events, a.Users = c.Events, c.Users
		} else {
			a.Data = append(a.Data, c)
		}
	}
	return a, rows.Err()
}
