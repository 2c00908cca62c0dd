//go:build race

package producer

// poison makes free overwrite what a batch held, so that whoever reads it later
// is loud.
const poison = true
