package main

import (
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"strings"
	"time"
)

// items is what the shop sells.
var items = []string{"bobbin", "thimble", "needle"}

// runCatalog serves the list of items, each with the number of times it was
// looked at, which Redis counts.
func runCatalog(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("catalog", flag.ContinueOnError)
	listen := flags.String("listen", ":8080", "where to serve")
	redisAddr := flags.String("redis", "redis.mesh:6379", "where Redis is")
	slowReplica := flags.String("slow-replica", "3", "the replica ($TULLE_REPLICA) that is slow")
	slowBy := flags.Duration("slow-by", 50*time.Millisecond, "how slow it is")
	if err := flags.Parse(args); err != nil {
		return err
	}
	var delay time.Duration
	replica := os.Getenv("TULLE_REPLICA")
	if replica[strings.LastIndexByte(replica, '-')+1:] == *slowReplica {
		delay = *slowBy
	}
	redis := newRedis(*redisAddr)
	defer redis.close()

	mux := http.NewServeMux()
	mux.HandleFunc("GET /items", func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(delay)
		var list strings.Builder
		for _, item := range items {
			views, err := redis.increment(r.Context(), "views:"+item)
			if err != nil {
				http.Error(w, err.Error(), http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintf(&list, "%s, seen %d times\n", item, views)
		}
		fmt.Fprint(w, list.String())
	})
	return serve(ctx, *listen, mux)
}
