SHELL := /bin/bash
GO ?= go
PORT := $(or $(SERVER_PORT),8080)
NOW_MS = $$(date +%s000)

ENGINE := internal/embedded/clickhouse/engine
ENGINE_STAMP := $(ENGINE)/node_modules/.package-lock.json

RACE := ./internal/ring ./internal/loop ./internal/codec ./internal/stat ./internal/logging ./internal/kafka ./internal/producer ./internal/server ./internal/sink ./internal/embedded

.DEFAULT_GOAL := help

## help: list the targets
help:
	@sed -n 's/^## //p' $(MAKEFILE_LIST) | awk -F': ' '{printf "  %-14s %s\n", $$1, $$2}'

## run: build, and serve everything on the embedded default (DATA_DIR, ./data)
run: build
	EMBEDDED=$${EMBEDDED:-true} bin/edge

## build: bin/edge, with the embedded engine's library beside it
build: setup
	CGO_ENABLED=0 $(GO) build -trimpath -o bin/edge ./cmd/edge

## setup: fetch Go modules and the ClickHouse engine
setup: bin/libchdb.so
	@$(GO) mod download

bin/libchdb.so: $(ENGINE_STAMP)
	@mkdir -p bin
	@lib=$$(ls $(ENGINE)/node_modules/@chdb/lib-*/libchdb.so 2>/dev/null | head -n 1); \
	if [ -z "$$lib" ]; then echo "no ClickHouse engine is published for this platform; edge runs with EMBEDDED=false"; else ln -sfn "../$$lib" $@; fi

$(ENGINE_STAMP): $(ENGINE)/package-lock.json
	cd $(ENGINE) && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

## test: everything that runs in minutes, the real engine and broker included
test: setup
	EDGE_REQUIRE_ENGINE=1 $(GO) test -timeout 20m ./internal/sink ./... # the longest first: two packages run at once
	@$(MAKE) --no-print-directory test-bench

# Repetitions of a fault, and tests of a sink that does one thing after the other: make test's.
ALONE := EngineKilled|GroupPast|EarlierLi|Lost(Tail|Record)|OpenBatches|DamagedBatch|TestDecided|CallFails|InsertCutAtEveryStep|ClickHouseDown|RecoveryFromEvery|RecoveryOf|SIGKILLAtC7|WindowChanges|CommitFails|HoleOfMany|Audit(Of|With|At|or)|TTL|Copy|TakesLong|StandsStill|HangsBefore|TopicRecreated|OffsetsMovedBack|DuplicateSDK|ComparisonWithoutAnswer|HoleThat|Hour|OutageInMemory|TrickleWithout|WithoutAWord

## race: the packages in which goroutines meet, under the race detector
race: setup
	EDGE_REQUIRE_ENGINE=1 $(GO) test -race -timeout 20m -skip '$(ALONE)' $(RACE)
	EDGE_REQUIRE_ENGINE=1 $(GO) test -race -run 'Call|Kept|Few|ADay|Describe|Connections' ./internal/query # the rest is one goroutine that waits for the engine

## health: GET /health of the running server
health:
	@curl --fail-with-body -sS "http://localhost:$(PORT)/health"; status=$$?; echo; exit $$status

## ready: GET /ready of the running server
ready:
	@curl --fail-with-body -sS "http://localhost:$(PORT)/ready"; status=$$?; echo; exit $$status

## test-event: POST one event to the running server
test-event:
	@curl --fail-with-body -sS "http://localhost:$(PORT)/events" -H 'Content-Type: application/json' -d '{"event_name":"product_view","channel":"web","campaign_id":"summer_sale_2024","user_id":"user_12345","timestamp":'$(NOW_MS)',"tags":["electronics","featured"],"metadata":{"product_id":"SKU-001","page_url":"/products/laptop"}}'; status=$$?; echo; exit $$status

## test-metrics: GET /metrics for product_view, last 24 hours, by channel
test-metrics:
	@curl --fail-with-body -sS "http://localhost:$(PORT)/metrics?event_name=product_view&group_by=channel"; status=$$?; echo; exit $$status

## replay: post an NDJSON file of events to the running server: make replay FILE=path
replay: build
	@bin/edge replay "$(FILE)"

KAFKA_STAMP := .tools/kafka/lib/.fetched

$(KAFKA_STAMP): deploy/kafka/pom.xml
	rm -rf $(@D)
	mvn -q -B -C -f $< dependency:copy-dependencies -DoutputDirectory=$(CURDIR)/$(@D)
	@touch $@

## kafka: run one Apache Kafka broker on 127.0.0.1 (KAFKA_PORT, 19092) until Ctrl-C
kafka: $(KAFKA_STAMP)
	@exec deploy/kafka/run

## test-kafka: end to end, kill and rebalance tests against a real Apache Kafka
test-kafka: setup $(KAFKA_STAMP)
	EDGE_KAFKA=1 EDGE_REQUIRE_ENGINE=1 $(GO) test -v -count=1 -timeout 15m -run '^TestKafka$$' ./cmd/edge

LINT := .tools/bin/golangci-lint-2.15.0

$(LINT):
	@mkdir -p $(@D)
	GOBIN=$(CURDIR)/$(@D) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0
	@mv $(@D)/golangci-lint $@

## lint: the linters, and the imports as DESIGN.md draws them
lint: $(LINT)
	$(LINT) run ./...
	cd bench && GOFLAGS=-mod=mod ../$(LINT) run ./...

## check: formatting, vet, linters, and a go.mod that is tidy
check: lint
	@test -z "$$(gofmt -l cmd internal migrations bench deploy)" || { gofmt -d cmd internal migrations bench deploy; exit 1; }
	$(GO) vet ./...
	$(GO) mod tidy -diff

## notices: write THIRD_PARTY_NOTICES, the licences of what is linked
notices:
	$(GO) run ./internal/notices > THIRD_PARTY_NOTICES.new && mv THIRD_PARTY_NOTICES.new THIRD_PARTY_NOTICES

GORELEASER := .tools/bin/goreleaser-2.16.0

$(GORELEASER):
	@mkdir -p $(@D)
	GOBIN=$(CURDIR)/$(@D) nice $(GO) install github.com/goreleaser/goreleaser/v2@v2.16.0
	@mv $(@D)/goreleaser $@

## release-check: .goreleaser.yaml by goreleaser's own check, and that edge builds for macOS (minutes)
release-check: $(GORELEASER)
	$(GORELEASER) check
	GOOS=darwin CGO_ENABLED=0 $(GO) build -o /dev/null ./cmd/edge

VULN := .tools/bin/govulncheck-1.9.0

$(VULN):
	@mkdir -p $(@D)
	GOBIN=$(CURDIR)/$(@D) $(GO) install golang.org/x/vuln/cmd/govulncheck@v1.9.0
	@mv $(@D)/govulncheck $@

## vuln: ask the Go vulnerability database about the program; a skip, visibly, where it cannot be reached
vuln: $(VULN)
	@out=$$($(VULN) ./cmd/edge 2>&1); status=$$?; echo "$$out"; \
	if grep -q 'fetching vulnerabilities: Get "[^"]*": ' <<<"$$out"; then \
	  echo 'SKIPPED: the vulnerability database is not reachable from here'; exit 0; fi; \
	exit $$status

CHAOS_REPORT := $(CURDIR)/.tools/chaos.md

## chaos: every fault, as often as a claim needs (about 18 minutes), and a table
chaos: setup $(KAFKA_STAMP)
	@mkdir -p $(dir $(CHAOS_REPORT)) && rm -f $(CHAOS_REPORT)
	@status=0; \
	EDGE_CHAOS=1 EDGE_CHAOS_REPORT=$(CHAOS_REPORT) EDGE_REQUIRE_ENGINE=1 EDGE_REQUIRE_CRASH=1 EDGE_KAFKA=1 \
	$(GO) test -p 2 -count=1 -timeout 60m -run 'Kill|SIGKILL|Cut|Dropped|RebalanceMidInsert|ClickHouseRestarts|TestKafka|CallFails' \
	  ./cmd/edge ./internal/sink ./internal/embedded || status=1; \
	echo; echo '| fault | rounds | events accepted | lost | duplicated | worst recovery |'; \
	echo '| --- | --- | --- | --- | --- | --- |'; cat $(CHAOS_REPORT); exit $$status

# The benchmarks are a module of their own: rivals stay out of edge's go.sum.
# -mod=mod, because edge's own requirements are part of its.
BENCH := .tools/bin/edge-bench
BENCH_GO := GOFLAGS=-mod=mod $(GO)

$(BENCH): build
	@mkdir -p $(@D)
	cd bench && $(BENCH_GO) build -o ../$@ .

## bench: every stage beside its limit and a rival (35 minutes or more; BENCH_QUICK=1, BENCH_STAGES=…)
bench: $(BENCH)
	cd bench && ../$(BENCH)

## bench-model: what 20 thousand to 10 million events/s need, from the last whole bench, into DESIGN.md
bench-model: $(BENCH)
	cd bench && ../$(BENCH) model

BENCH_COUNT ?= 6
BENCH_TIME ?= 100ms
TIMED = $(sort $(patsubst %/,./%,$(dir $(shell grep -rl --include='*_test.go' --exclude-dir=node_modules '^func Benchmark' cmd deploy internal migrations))))

# Ends with what failed first: its output is then no baseline and nothing to compare. Nor is
# one without those that need the engine: a benchmark that is skipped says nothing.
define go_bench
set -o pipefail; export EDGE_REQUIRE_ENGINE=1; { echo "# $$(sed -n 's/^model name.*: //p' /proc/cpuinfo | head -n 1), $$(nproc) cores, $$($(GO) version), commit $$(git describe --always --dirty)" && \
$(GO) test -run '^$$' -bench . -benchmem -benchtime $(BENCH_TIME) -count $(BENCH_COUNT) -p 1 -timeout 60m $(TIMED) && \
cd bench && $(BENCH_GO) test -run '^$$' -bench . -benchmem -benchtime $(BENCH_TIME) -count $(BENCH_COUNT) -timeout 60m ./rival; }
endef

## bench-baseline: go test -bench of everything, as bench/baseline.txt
bench-baseline: setup
	@mkdir -p .tools # written there first: half a baseline would make the commit dirty
	@$(go_bench) | tee .tools/baseline.txt && mv .tools/baseline.txt bench/baseline.txt

BENCHSTAT := .tools/bin/benchstat-20260908

$(BENCHSTAT):
	@mkdir -p $(@D)
	GOBIN=$(CURDIR)/$(@D) $(GO) install golang.org/x/perf/cmd/benchstat@v0.0.0-20260908200009-22c9c6c9d4da
	@mv $(@D)/benchstat $@

## bench-compare: the same again, and what differs from bench/baseline.txt
bench-compare: setup $(BENCHSTAT)
	@mkdir -p .tools
	@$(go_bench) > .tools/bench.txt || { cat .tools/bench.txt; exit 1; }
	@$(MAKE) --no-print-directory bench-stat

## bench-stat: the last bench-compare's table again
# Processor and number of cores would be tables of their own.
bench-stat: $(BENCHSTAT)
	@$(BENCHSTAT) -ignore cpu,/gomaxprocs bench/baseline.txt .tools/bench.txt
	@on() { sed -n '1s/^# \(.* cores\),.*/\1/p' "$$1"; }; before=$$(on bench/baseline.txt); here=$$(on .tools/bench.txt); \
	if [ "$$before" != "$$here" ]; then echo; echo "bench/baseline.txt is of another machine, $$before, and this one is $$here: differences may be theirs."; fi

K6 := .tools/bin/k6-1.8.1

$(K6):
	@mkdir -p $(@D)
	GOBIN=$(CURDIR)/$(@D) $(GO) install go.k6.io/k6@v1.8.1
	@mv $(@D)/k6 $@

## load-test: the k6 script against an edge of its own, and the spike k6 cannot offer here
load-test: $(BENCH) $(K6)
	cd bench && BENCH_K6=$(CURDIR)/$(K6) ../$(BENCH) load-test

## test-bench: vet and tests of the benchmarks themselves, each of which runs once
# -count=1: what go has cached does not know of DESIGN.md, which is outside of this module.
test-bench:
	cd bench && $(BENCH_GO) vet ./... && $(BENCH_GO) test -count=1 -bench . -benchtime 1x ./...

COMPOSE ?= docker compose

## docker-up: build edge:slim, start everything of docker-compose.yml, wait until it is healthy
docker-up:
	$(COMPOSE) up --build --detach --wait

## docker-down: stop it; volumes stay
docker-down:
	$(COMPOSE) --profile '*' down

## docker-clean: stop it and remove its volumes
docker-clean:
	$(COMPOSE) --profile '*' down --volumes

## docker-bench: the k6 script against what docker-up started; the result is JSON
docker-bench:
	@$(COMPOSE) --profile bench run --rm k6

## docker-images: build both images, edge:slim and edge:embedded
docker-images:
	docker build -f deploy/docker/Dockerfile --target slim -t edge:slim .
	docker build -f deploy/docker/Dockerfile --target embedded -t edge:embedded .

## clean: remove what was built; data/ stays
clean:
	rm -rf bin $(ENGINE)/node_modules

.PHONY: help run build setup test race lint check vuln notices release-check chaos health ready test-event test-metrics replay kafka test-kafka clean
.PHONY: bench bench-model bench-baseline bench-compare bench-stat load-test test-bench
.PHONY: docker-up docker-down docker-clean docker-bench docker-images
