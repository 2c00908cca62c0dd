// Package embedded runs a Kafka broker inside the edge process, on disk, so
// that one binary and one directory are a complete system.
//
// The broker is franz-go's kfake: the real protocol and a real log, written
// for tests. Everything in this package exists because of what that costs when
// it holds the only copy of acknowledged events, one rule per weakness:
//
//   - kfake does not lock its directory: lockDir does, before anything is read.
//   - It trusts lengths up to 4 GiB and dies of an unknown request key: every
//     connection passes a gate that reads the frame header first. There is no
//     TCP port unless one is asked for, and then only on loopback.
//   - Its retention forgets offsets once a partition is empty, and offsets are
//     identities here: kfake's retention stays off, Trim always leaves a record.
//   - It ignores the errors of fsync and of writing a commit: a reserve of free
//     space turns producers, then commits, away before the disk is full, and a
//     second descriptor on each active segment reports the fsync errors.
//   - It appends commits behind a torn one, where no later start reads them:
//     both state logs are cut back to their last whole entry, at start and at
//     the moment a write fails.
//   - After a kill it reads the whole log into memory, and it passes over
//     offsets missing in the middle: every segment is walked and described to
//     kfake before it opens them, in bounded memory, and holes are reported.
//   - After a kill it no longer knows the producers' sequence numbers, and a batch
//     sent again because its answer got lost would be there twice: they are read
//     from the log.
//   - Nobody tells it that the log lost its tail: Check compares the log with
//     what was committed and stored before anything is served, and opens a new
//     incarnation when offsets would otherwise be used twice.
//
// What it promises: a record acknowledged to a producer has been written and
// fsynced on this disk (unless NoSync), in order, and survives SIGKILL. What
// it does not: one disk is one copy, and one goroutine serves all requests, so
// more partitions buy no parallelism and cost two fsyncs each per request.
//
// All methods of Broker may be called from any goroutine.
package embedded
