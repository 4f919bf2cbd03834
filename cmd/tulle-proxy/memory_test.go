package main

import (
	"testing"
	"testing/fstest"
)

func TestMemory(t *testing.T) {
	for name, c := range map[string]struct {
		files map[string]string
		want  int64
	}{
		"cgroup v2":         {map[string]string{"memory.max": "67108864\n"}, 64 << 20},
		"cgroup v1":         {map[string]string{"memory/memory.limit_in_bytes": "67108864\n"}, 64 << 20},
		"little":            {map[string]string{"memory.max": "1048576\n"}, leastMemory},
		"much":              {map[string]string{"memory.max": "8589934592\n"}, mostMemory},
		"no limit":          {map[string]string{"memory.max": "max\n"}, mostMemory},
		"no limit, v1":      {map[string]string{"memory/memory.limit_in_bytes": "9223372036854771712\n"}, mostMemory},
		"nothing to see":    {nil, mostMemory},
		"something unknown": {map[string]string{"memory.max": "lots\n"}, mostMemory},
	} {
		files := fstest.MapFS{}
		for file, text := range c.files {
			files[file] = &fstest.MapFile{Data: []byte(text)}
		}
		if got := memory(files); got != c.want {
			t.Errorf("%s: %d, want %d", name, got, c.want)
		}
	}
}
