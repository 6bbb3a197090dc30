//go:build tools

// Package tools names the programs that the local driver builds from this module.
package tools

import (
	_ "github.com/coredns/coredns"
)
