// Package bare is the limit: the least a fasthttp server can do and still
// answer 202. It looks at nothing it is sent, so no program on fasthttp that
// does its work can be faster, and what is missing to it is what the work costs.
package bare

import (
	"context"
	"net"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/valyala/fasthttp"
)

// Serve answers until ctx ends. GET /count is how many requests it has said 202
// to: its side of the ledger.
func Serve(ctx context.Context, ln net.Listener) error {
	var n atomic.Int64
	srv := &fasthttp.Server{
		Handler: func(ctx *fasthttp.RequestCtx) {
			if ctx.IsGet() {
				ctx.SetBodyString(strconv.FormatInt(n.Load(), 10))
				return
			}
			n.Add(1)
			ctx.SetStatusCode(fasthttp.StatusAccepted)
			ctx.SetContentType("application/json")
			ctx.SetBodyString(`{"status":"accepted"}`)
		},
		ReadTimeout: 5 * time.Second, WriteTimeout: 10 * time.Second, IdleTimeout: time.Minute,
		NoDefaultServerHeader: true, MaxRequestBodySize: 64 << 20,
	}
	context.AfterFunc(ctx, func() { _ = srv.Shutdown() })
	return srv.Serve(ln)
}
