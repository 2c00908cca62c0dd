package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"maps"
	"net/http"
	"os"
	"reflect"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"

	"edge/internal/query"
)

// description is openapi.yaml, read and checked once.
var description = sync.OnceValues(func() (*openapi3.T, error) {
	for _, lines := range []string{"application/x-ndjson", "application/ndjson", "application/jsonl"} {
		openapi3filter.RegisterBodyDecoder(lines, openapi3filter.PlainBodyDecoder)
	}
	doc, err := openapi3.NewLoader().LoadFromData(openAPI)
	if err != nil {
		return nil, err
	}
	return doc, doc.Validate(context.Background())
})

// conforms holds an answer, and the request when it was taken, to openapi.yaml.
// Every test that talks to a server goes through it. req is nil when what was
// sent is no HTTP to net/http either.
func conforms(t testing.TB, req *http.Request, a answer) {
	t.Helper()
	doc, err := description()
	if err != nil {
		t.Fatal(err)
	}
	in := &openapi3filter.RequestValidationInput{
		Request: req, Route: operation(doc, req),
		Options: &openapi3filter.Options{AuthenticationFunc: openapi3filter.NoopAuthenticationFunc, SkipSettingDefaults: true},
	}
	if req == nil {
		in.Request = &http.Request{Method: http.MethodPost}
	}
	said := strings.SplitN(a.body, "\n", 2)[0]
	if a.StatusCode < 300 && req != nil {
		if in.Route == nil {
			if req.RequestURI == "*" { // the server as a whole, which is no path
				return
			}
			t.Errorf("%s %s: got %d; openapi.yaml has no such operation", req.Method, req.URL, a.StatusCode)
			return
		}
		plainRequest(in, a.body)
		if err := openapi3filter.ValidateRequest(context.Background(), in); err != nil {
			t.Errorf("%s %s was taken, and openapi.yaml forbids it: %v", req.Method, req.URL, err)
		}
	}
	if in.Route == nil {
		if in.Route = refusals(doc, a.StatusCode); in.Route == nil {
			return
		}
	}
	err = openapi3filter.ValidateResponse(context.Background(), &openapi3filter.ResponseValidationInput{
		RequestValidationInput: in, Status: a.StatusCode, Header: a.Header,
		Body: io.NopCloser(strings.NewReader(a.body)), Options: &openapi3filter.Options{IncludeResponseStatus: true},
	})
	if err != nil {
		t.Errorf("%s %s: got %d %.200s, which openapi.yaml does not have: %v", in.Request.Method, in.Request.URL, a.StatusCode, said, err)
	}
}

// operation returns what openapi.yaml says about req, nil when it is nothing.
func operation(doc *openapi3.T, req *http.Request) *routers.Route {
	if req == nil {
		return nil
	}
	path := req.URL.EscapedPath() // the router decodes nothing
	if len(path) > 1 {
		path = strings.TrimSuffix(path, "/")
	}
	item := doc.Paths.Value(path)
	if item == nil {
		return nil
	}
	method := req.Method
	if method == http.MethodHead {
		method = http.MethodGet
	}
	op := item.Operations()[method]
	if op == nil {
		return nil
	}
	return &routers.Route{Spec: doc, Path: path, PathItem: item, Method: method, Operation: op}
}

// plainRequest brings in's request to what the validator understands: it cannot
// inflate bodies, wants a content type, and takes an event that was refused
// beside others for a mistake of the whole.
func plainRequest(in *openapi3filter.RequestValidationInput, body string) {
	h := in.Request.Header
	if h.Get("Content-Type") == "" {
		h.Set("Content-Type", "application/json")
	}
	if enc := h.Get("Content-Encoding"); enc != "" {
		h.Set("Content-Encoding", strings.ToLower(enc))
		in.Options.ExcludeRequestBody = true
	}
	var verdict struct{ Rejected int }
	if json.Unmarshal([]byte(body), &verdict) == nil && verdict.Rejected > 0 {
		in.Options.ExcludeRequestBody = true
	}
}

// refusals is an operation with the answer that what is no operation gets.
func refusals(doc *openapi3.T, status int) *routers.Route {
	name := map[int]string{
		400: "NotHTTP", 401: "Unauthorized", 404: "NotFound", 405: "MethodNotAllowed", 408: "TooSlow", 413: "TooLarge",
		415: "Unsupported", 429: "Overloaded", 431: "HeaderTooLarge", 500: "Bug", 503: "Unavailable", 505: "NotHTTP1",
	}[status]
	if name == "" {
		return nil
	}
	op := &openapi3.Operation{Responses: openapi3.NewResponses(openapi3.WithStatus(status, doc.Components.Responses[name]))}
	return &routers.Route{Spec: doc, Operation: op}
}

// next takes one request off what c has sent, nil when it is none. What it reads
// of a body that never came whole is good enough: it was refused.
func (c *conn) next() *http.Request {
	raw := bytes.NewReader(c.sent)
	br := bufio.NewReader(raw)
	req, err := http.ReadRequest(br)
	if err != nil {
		c.sent = nil
		return nil
	}
	body, err := io.ReadAll(req.Body)
	if err != nil {
		c.sent = nil
	} else {
		c.sent = c.sent[len(c.sent)-raw.Len()-br.Buffered():]
	}
	req.Body = io.NopCloser(bytes.NewReader(body))
	req.ContentLength = int64(len(body))
	return req
}

func TestOpenAPIIsServed(t *testing.T) {
	e := start(t, func(c *Config) { c.WriteKeys, c.ReadKeys = []string{"w"}, []string{"r"} }) // it asks for no key
	a := e.do("GET", "/openapi.yaml", nil, nil)
	if a.StatusCode != 200 || a.body != string(openAPI) || a.Header.Get("Content-Type") != "application/yaml" {
		t.Errorf("got %d, %s, %d bytes; want 200, application/yaml and the file", a.StatusCode, a.Header.Get("Content-Type"), len(a.body))
	}
	doc, err := description()
	if err != nil {
		t.Fatal(err)
	}
	// Each route of the router is described, and nothing else is.
	for method, paths := range e.routes.List() {
		if method == "HEAD" {
			continue
		}
		for _, path := range paths {
			if item := doc.Paths.Value(path); item == nil || item.GetOperation(method) == nil {
				t.Errorf("openapi.yaml lacks %s %s", method, path)
			}
		}
	}
	for path := range doc.Paths.Map() {
		e.do("OPTIONS", path, nil, nil).check(t, 204, "")
	}
}

// TestOpenAPIHasEveryParameter holds that the parameters of GET /metrics are
// those that are read, with the values that are taken.
func TestOpenAPIHasEveryParameter(t *testing.T) {
	doc, err := description()
	if err != nil {
		t.Fatal(err)
	}
	read := make(map[string]bool)
	ask := func(values map[string]string) error {
		_, err := query.Parse(func(name string) string { read[name] = true; return values[name] }, time.Unix(1708740000, 0))
		return err
	}
	described := make(map[string]bool)
	for _, p := range doc.Paths.Value("/metrics").Get.Parameters {
		described[p.Value.Name] = true
		for _, value := range p.Value.Schema.Value.Enum {
			if err := ask(header("event_name", "signup", "from", "1708732800", p.Value.Name, value.(string))); err != nil {
				t.Errorf("openapi.yaml allows %s=%s: %v", p.Value.Name, value, err)
			}
		}
	}
	if !maps.Equal(described, read) {
		t.Errorf("openapi.yaml has the parameters %v; read are %v", described, read)
	}
	e := start(t, nil)
	for _, channel := range doc.Components.Schemas["Event"].Value.Properties["channel"].Value.Enum {
		raw, err := json.Marshal(channel)
		if err != nil {
			t.Fatal(err)
		}
		e.do("POST", "/events", nil, []byte(strings.Replace(good, `"web"`, string(raw), 1))).check(t, 202, "accepted")
	}
}

// TestOpenAPIExamples sends every example body of openapi.yaml, and holds that
// they and the answers beside them are those of the README, which are executed.
func TestOpenAPIExamples(t *testing.T) {
	doc, err := description()
	if err != nil {
		t.Fatal(err)
	}
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	shown := func(path, what string, value any) {
		t.Helper()
		if text, ok := value.(string); ok { // lines; the README gives them to printf
			for line := range strings.Lines(text) {
				if !strings.Contains(string(readme), strings.TrimSpace(line)) {
					t.Errorf("%s: the README does not have %s %s", path, what, line)
				}
			}
			return
		}
		for _, text := range jsonIn(string(readme)) {
			var v any
			if json.Unmarshal([]byte(text), &v) == nil && reflect.DeepEqual(v, value) {
				return
			}
		}
		t.Errorf("%s: the README does not have %s %v", path, what, value)
	}
	e := start(t, func(c *Config) {
		c.Query = func(_ context.Context, r query.Request) (*query.Result, error) { return &query.Result{Request: r}, nil }
	})
	sent := 0
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			if op.RequestBody != nil {
				for typ, media := range op.RequestBody.Value.Content {
					for name, example := range media.Examples {
						value := example.Value.Value
						body, isText := value.(string)
						if !isText {
							raw, err := json.Marshal(value)
							if err != nil {
								t.Fatal(err)
							}
							body = string(raw)
						}
						e.do(method, path, header("Content-Type", typ), []byte(body)).check(t, 202, `"status":"accepted"`)
						sent++
						if name != "object" && name != "array" { // the README shows one that is refused in part
							shown(path, "the request", value)
						}
					}
				}
			}
			for status, res := range op.Responses.Map() {
				for _, media := range res.Value.Content {
					for _, example := range media.Examples {
						if status == "200" || status == "202" {
							shown(path, "the answer", example.Value.Value)
						}
					}
				}
			}
		}
	}
	if sent < 4 {
		t.Errorf("sent %d examples; want at least 4", sent)
	}
}

// jsonIn returns what the README's transcripts send as -d and what they answer.
func jsonIn(readme string) []string {
	out := regexp.MustCompile(`(?m)^[{\[].*[}\]]$`).FindAllString(readme, -1)
	for _, m := range regexp.MustCompile(`-d '([^']*)'`).FindAllStringSubmatch(readme, -1) {
		out = append(out, m[1])
	}
	return out
}
