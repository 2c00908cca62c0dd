package server

import (
	"slices"

	"github.com/valyala/fasthttp"
)

// cors lets pages of other origins call. Credentials are never allowed: keys
// travel in headers the page sets itself, so "*" is safe.
type cors struct {
	any  bool
	list []string
}

func newCORS(origins []string) cors {
	return cors{any: slices.Contains(origins, "*"), list: origins}
}

// allow marks the answer as readable by the page that asked. Without an Origin
// header there is no page, and the answer carries none of this.
func (c *cors) allow(ctx *fasthttp.RequestCtx) bool {
	h := &ctx.Response.Header
	origin := ctx.Request.Header.PeekCanonical(keyOrigin)
	if len(origin) == 0 {
		return false
	}
	if c.any {
		h.SetCanonical(keyAllowOrigin, valAny)
	} else {
		// The answer depends on who asks, also when it is no.
		h.AddBytesKV(keyVary, keyOrigin)
		if !slices.Contains(c.list, string(origin)) {
			return false
		}
		h.SetCanonical(keyAllowOrigin, origin)
	}
	h.SetCanonical(keyExpose, keyRetryAfter)
	return true
}

// preflight answers OPTIONS of a known route; the router has set Allow.
func (s *Server) preflight(ctx *fasthttp.RequestCtx) error {
	h := &ctx.Response.Header
	if len(h.PeekBytes(keyAllowOrigin)) > 0 {
		h.SetCanonical(keyAllowMethods, h.PeekBytes(keyAllow))
		h.SetCanonical(keyAllowHeaders, valHeaders)
		h.SetCanonical(keyMaxAge, valMaxAge)
	}
	ctx.SetStatusCode(fasthttp.StatusNoContent)
	return nil
}
