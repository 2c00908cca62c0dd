package model

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// halfLoad is the row of singles near the load that machines run at. Saturated they
// cost edge three fifths of it and the broker a third, because more of them share a
// wake-up and a batch.
const halfLoad = "edge at half load"

// table is one of a report's, as text.
type table struct {
	Header []string   `json:"header"`
	Rows   [][]string `json:"rows"`
}

// figures are the fields of c that a report has as numbers, by their names there.
func (c *Costs) figures() map[string]*float64 {
	return map[string]*float64{
		"bulk_NDJSON_cpu_us": &c.Edge, "bulk_NDJSON_broker_cpu_us": &c.Broker, "bulk_NDJSON_per_second": &c.Partition,
		"body_bytes": &c.Body, "topic_bytes": &c.Topic, "steady_stored_bytes": &c.Stored, "steady_engine_cpu_us": &c.Engine,
		"sink_cpu_us": &c.Sink, "sink_engine_cpu_us": &c.Insert, "sink_broker_cpu_us": &c.BrokerRead, "sink_per_second": &c.SinkRate,
	}
}

// report is what the model reads of one.
type report struct {
	Machine struct {
		Commit string `json:"commit"`
		CPU    string `json:"cpu"`
		Cores  int    `json:"cores"`
	} `json:"machine"`
	Sections []struct {
		Numbers map[string]float64 `json:"numbers"`
		Tables  []table            `json:"tables"`
		Goals   []struct {
			What    string `json:"what"`
			Verdict string `json:"verdict"`
		} `json:"goals"`
	} `json:"sections"`
	Failed []string `json:"failed"`
}

// counts says why figures of r are none to plan with: a stage failed, or a ledger does not
// add up, or nobody can check out what was measured.
func (r *report) counts() error {
	var against []error
	if strings.HasSuffix(r.Machine.Commit, "-dirty") {
		against = append(against, fmt.Errorf("the report is of %s, which is no commit", r.Machine.Commit))
	}
	for _, f := range r.Failed {
		against = append(against, fmt.Errorf("a stage failed: %s", f))
	}
	for _, s := range r.Sections {
		for _, g := range s.Goals {
			if g.Verdict == "VOID" {
				against = append(against, fmt.Errorf("%s is VOID", g.What))
			}
		}
	}
	return errors.Join(against...)
}

// FromReport takes the costs out of the report of a whole bench. One that lacks some is
// an error, costs of two runs are those of none; and so is one whose figures do not count.
func FromReport(r io.Reader) (c Costs, err error) {
	var report report
	if err := json.NewDecoder(r).Decode(&report); err != nil {
		return c, fmt.Errorf("read the report: %w", err)
	}
	if err := report.counts(); err != nil {
		return c, err
	}
	c.Commit, c.CPU, c.Cores = report.Machine.Commit, report.Machine.CPU, report.Machine.Cores
	for _, s := range report.Sections {
		for name, to := range c.figures() {
			if v, ok := s.Numbers[name]; ok {
				*to = round(v)
			}
		}
		for _, t := range s.Tables {
			if err := c.readSingles(t); err != nil {
				return c, fmt.Errorf("read the report: %w", err)
			}
		}
	}
	return c, c.complete()
}

// complete says what is missing.
func (c *Costs) complete() error {
	var missing []error
	figures := c.figures()
	for _, name := range slices.Sorted(maps.Keys(figures)) {
		if *figures[name] <= 0 {
			missing = append(missing, fmt.Errorf("the report has no %s", name))
		}
	}
	if c.Single <= 0 || c.BrokerSingle <= 0 {
		missing = append(missing, fmt.Errorf("the report has no row %q", halfLoad))
	}
	return errors.Join(missing...)
}

// readSingles takes the costs of singles out of the table that has them.
func (c *Costs) readSingles(t table) error {
	for _, row := range t.Rows {
		if len(row) == 0 || row[0] != halfLoad {
			continue
		}
		for _, cell := range []struct {
			column string
			to     *float64
		}{{"server µs/event", &c.Single}, {"broker", &c.BrokerSingle}} {
			i := slices.Index(t.Header, cell.column)
			if i < 0 || i >= len(row) {
				return fmt.Errorf("the row %q has no column %q", halfLoad, cell.column)
			}
			v, err := strconv.ParseFloat(row[i], 64)
			if err != nil {
				return fmt.Errorf("%q of the row %q: %w", cell.column, halfLoad, err)
			}
			*cell.to = round(v)
		}
	}
	return nil
}

// Load reads what Save wrote.
func Load(r io.Reader) (c Costs, err error) {
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&c); err != nil {
		return c, fmt.Errorf("read the costs: %w", err)
	}
	return c, c.complete()
}

// Save is c as costs.json has it.
func (c Costs) Save() ([]byte, error) {
	b, err := json.MarshalIndent(c, "", "  ")
	return append(b, '\n'), err
}
