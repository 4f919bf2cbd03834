package http1

import "strconv"

func describeFraming(f Framing, length int64) string {
	if f == Length {
		return "length=" + strconv.FormatInt(length, 10)
	}
	return map[Framing]string{None: "none", Chunked: "chunked", EOF: "eof"}[f]
}
