package ring

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// The sequential queue the ring must be indistinguishable from.

type input struct {
	op    byte // '+' push, '-' pop, 'c' close
	value int
	bytes int
	max   int
}

type output struct {
	err  error
	took []int
}

type item struct{ value, bytes int }

type queue struct {
	items  []item
	closed bool
}

// model returns the queue of capacity items and maxBytes bytes. One liberty is
// taken: Pop may return fewer items than are inside, because an item counts
// from its claim and is handed over from its store. Their order, their number
// and every refusal are strict.
func model(capacity, maxBytes int) porcupine.Model {
	step := func(state, in, out any) (bool, any) {
		q, i, o := state.(queue), in.(input), out.(output)
		switch i.op {
		case '+':
			inside := 0
			for _, v := range q.items {
				inside += v.bytes
			}
			full := len(q.items) == capacity || inside+i.bytes > maxBytes
			switch {
			case q.closed:
				return o.err == ErrClosed, q
			case full:
				return o.err == ErrFull, q
			}
			items := append(slices.Clip(q.items), item{i.value, i.bytes})
			return o.err == nil, queue{items, q.closed}
		case '-':
			if len(o.took) > len(q.items) {
				return false, q
			}
			for k, v := range o.took {
				if q.items[k].value != v {
					return false, q
				}
			}
			return true, queue{q.items[len(o.took):], q.closed}
		}
		return true, queue{q.items, true}
	}
	return porcupine.Model{
		Init: func() any { return queue{} },
		Step: step,
		Equal: func(a, b any) bool {
			p, q := a.(queue), b.(queue)
			return p.closed == q.closed && slices.Equal(p.items, q.items)
		},
		DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v -> %+v", in, out) },
	}
}

// history runs writers against one reader and records when each call began and
// ended.
func history(r *Ring[int], writers, calls int, seed uint64) []porcupine.Operation {
	var all []porcupine.Operation
	var mu sync.Mutex
	var wg sync.WaitGroup
	begin := time.Now()
	for client := range writers + 1 {
		wg.Go(func() {
			random := rand.New(rand.NewPCG(seed, uint64(client)))
			ops := make([]porcupine.Operation, 0, calls)
			dst := make([]int, 3)
			for k := range calls {
				in := input{op: '+', value: client*calls + k, bytes: 1 + random.IntN(4)}
				switch {
				case client == writers:
					in = input{op: '-', max: 1 + random.IntN(3)}
				case client == 0 && k == calls-1:
					in = input{op: 'c'}
				}
				var out output
				call := time.Since(begin)
				switch in.op {
				case '+':
					out.err = r.Push(in.value, in.bytes)
				case '-':
					n := r.Pop(dst[:in.max])
					out.took = slices.Clone(dst[:n])
				case 'c':
					r.Close()
				}
				ops = append(ops, porcupine.Operation{
					ClientId: client, Input: in, Call: int64(call), Output: out, Return: int64(time.Since(begin)),
				})
				if perturb {
					disturb()
				}
			}
			mu.Lock()
			all = append(all, ops...)
			mu.Unlock()
		})
	}
	wg.Wait()
	return all
}

// TestLinearizable checks short histories over tiny rings, from counters at
// zero and about to wrap.
func TestLinearizable(t *testing.T) {
	defer yielding(100)()
	refused, closed, popped := 0, 0, 0
	f := func(capacity, maxBytes, writers int, at struct{ pos, bytes uint32 }, seed uint64) {
		t.Helper()
		r := newAt[int](capacity, int64(maxBytes), at.pos, at.bytes)
		ops := history(r, writers, 200, seed)
		for _, op := range ops {
			switch out := op.Output.(output); {
			case out.err == ErrFull:
				refused++
			case out.err == ErrClosed:
				closed++
			default:
				popped += len(out.took)
			}
		}
		if got := porcupine.CheckOperationsTimeout(model(capacity, maxBytes), ops, 20*time.Second); got != porcupine.Ok {
			t.Errorf("capacity %d, %d bytes, %d writers, start %v, seed %d: %s", capacity, maxBytes, writers, at, seed, got)
		}
	}
	for seed := range uint64(4) {
		for _, at := range starts {
			f(1, 100, 3, at, seed)
			f(2, 100, 2, at, seed)
			f(2, 5, 8, at, seed)
			f(4, 100, 3, at, seed)
			f(4, 7, 9, at, seed)
		}
	}
	if refused == 0 || closed == 0 || popped == 0 {
		t.Errorf("the histories hold %d refusals by full, %d by closed, %d items: they prove nothing", refused, closed, popped)
	}
}
