package workload

import (
	"testing"

	"github.com/tulle-mesh/tulle/test/alone"
)

func TestMain(m *testing.M) { alone.Host(m) }
