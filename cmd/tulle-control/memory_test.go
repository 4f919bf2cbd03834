package main

import (
	"math"
	"testing"
	"testing/fstest"
)

func TestMemoryTarget(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"cgroup v2":         {map[string]string{"memory.max": "268435460\n"}, 241591914},
		"cgroup v1":         {map[string]string{"memory/memory.limit_in_bytes": "1000000000\n"}, 900_000_000},
		"no limit":          {map[string]string{"memory.max": "max\n"}, math.MaxInt64},
		"no limit, v1":      {map[string]string{"memory/memory.limit_in_bytes": "9223372036854771712\n"}, math.MaxInt64},
		"nothing to see":    {nil, math.MaxInt64},
		"something unknown": {map[string]string{"memory.max": "lots\n"}, math.MaxInt64},
	} {
		files := fstest.MapFS{}
		for file, text := range c.files {
			files[file] = &fstest.MapFile{Data: []byte(text)}
		}
		if got := memoryTarget(files); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
