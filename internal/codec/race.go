//go:build race

package codec

// poison overwrites released memory, so that a late reader is loud in tests.
const poison = true
