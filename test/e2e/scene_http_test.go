package e2e

import (
	"strings"
	"syscall"
	"testing"
)

// Answers of the scripted servers below.
const (
	okHi     = `send:HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nhi\n`
	okLast   = `send:HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbye\n`
	getFirst = `send:GET /first/MARKER HTTP/1.1\r\nHost: web\r\n\r\n`
)

// rawHTTPScene is HTTP/1 byte by byte: the scripted server prints the head as
// it arrives, so that not even the spelling of a header may change.
var rawHTTPScene = scene{name: "http", takes: []take{
	dialogue("head-is-kept",
		[]string{"head", okLast, "close"},
		[]string{`send:GET /a%2Fb;c?d=MARKER HTTP/1.1\r\nhOsT: web\r\nx-Odd-CASE:   spaced  \r\nX-Twice: 1\r\nX-Twice: 2\r\nConnection: close\r\n\r\n`, "eof"}),
	dialogue("answer-is-kept",
		[]string{"head", `send:HTTP/1.1 299 Rather Fine\r\nx-ODD: a\r\nX-odd: b\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi`, "close"},
		[]string{`send:GET /MARKER HTTP/1.1\r\nHost: web\r\n\r\n`, "eof"}),
	dialogue("keep-alive",
		[]string{"head", okHi, "head", okHi, "head", okLast, "close"},
		[]string{getFirst, "recv:41", getFirst, "recv:41", getFirst, "eof"}),
	dialogue("post-then-get",
		[]string{"head", "recv:24", okHi, "head", okLast, "close"},
		[]string{`send:POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 24\r\n\r\nMARKER`, "recv:41", getFirst, "eof"}),
	dialogue("http-1.0",
		[]string{"head", `send:HTTP/1.0 200 OK\r\nX-Much: MARKER\r\n\r\nup to the end`, "close"},
		[]string{`send:GET / HTTP/1.0\r\n\r\n`, "eof"}),
	dialogue("ends-with-the-connection",
		[]string{"head", `send:HTTP/1.1 200 OK\r\n\r\nMARKER`, "send:and more", "close"},
		[]string{getFirst, "eof"}),
	dialogue("reset-in-the-body",
		[]string{"head", `send:HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nMARKER`, "await:DIR/got", "rst"},
		[]string{getFirst, "head", "recv:24", "touch:DIR/got", "eof"}),
	dialogue("reset-in-a-body-that-ends-with-the-connection",
		[]string{"head", `send:HTTP/1.1 200 OK\r\n\r\nMARKER`, "await:DIR/got", "rst"},
		[]string{getFirst, "head", "recv:24", "touch:DIR/got", "eof"}),
	dialogue("early-hints",
		[]string{"head", `send:HTTP/1.1 103 Early Hints\r\nLink: </MARKER>\r\n\r\n`, "await:DIR/got", okLast, "close"},
		[]string{getFirst, "head", "touch:DIR/got", "eof"}),
	dialogue("expect-continue",
		[]string{"head", `send:HTTP/1.1 100 Continue\r\n\r\n`, "recv:24", okLast, "close"},
		[]string{`send:POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 24\r\nExpect: 100-continue\r\n\r\n`, "head", "send:MARKER", "eof"}),
	dialogue("expect-refused",
		[]string{"head", `send:HTTP/1.1 417 No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n`, "close"},
		[]string{`send:POST / HTTP/1.1\r\nHost: web\r\nContent-Length: 24\r\nExpect: 100-continue\r\n\r\n`, "eof"}),
	dialogue("no-content-then-next",
		[]string{"head", `send:HTTP/1.1 204 No Content\r\nX-M: MARKER\r\n\r\n`, "head", okLast, "close"},
		[]string{`send:DELETE /it HTTP/1.1\r\nHost: web\r\n\r\n`, "head", getFirst, "eof"}),
	dialogue("head-then-next",
		[]string{"head", `send:HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n`, "head", okLast, "close"},
		[]string{`send:HEAD /big HTTP/1.1\r\nHost: web\r\n\r\n`, "head", getFirst, "eof"}),
	dialogue("not-modified-then-next",
		[]string{"head", `send:HTTP/1.1 304 Not Modified\r\nContent-Length: 100\r\nETag: "MARKER"\r\n\r\n`, "head", okLast, "close"},
		[]string{`send:GET / HTTP/1.1\r\nHost: web\r\nIf-None-Match: "MARKER"\r\n\r\n`, "head", getFirst, "eof"}),
	dialogue("chunks-and-trailers-of-the-answer",
		[]string{"head", `send:HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-End\r\n\r\n18\r\nMARKER\r\n`, "await:DIR/got", `send:3\r\nend\r\n0\r\nX-End: yes\r\n\r\n`, "head", okLast, "close"},
		[]string{getFirst, "head", "recv:30", "touch:DIR/got", "recv:8", "head", getFirst, "eof"}),
	dialogue("early-answer",
		[]string{"head", "recv:24", `send:HTTP/1.1 413 Too Big\r\nContent-Length: 4\r\n\r\nbig\n`, "sum:100K", "head", okLast, "close"},
		[]string{`send:PUT / HTTP/1.1\r\nHost: web\r\nContent-Length: 102424\r\n\r\nMARKER`, "recv:47", "pump:100K", getFirst, "eof"}),
	dialogue("absolute-form",
		[]string{"head", okLast, "close"},
		[]string{`send:GET http://web/MARKER HTTP/1.1\r\nHost: web\r\n\r\n`, "eof"}),
	dialogue("options-asterisk",
		[]string{"head", okLast, "close"},
		[]string{`send:OPTIONS * HTTP/1.1\r\nHost: web\r\n\r\n`, "eof"}),
	dialogue("connect",
		[]string{"head", `send:HTTP/1.1 200 Go\r\n\r\n`, "recv:24", "send:and back", "fin", "eof"},
		[]string{`send:CONNECT far:9 HTTP/1.1\r\nHost: far:9\r\n\r\n`, "head", "send:MARKER", "eof", "send:after the end", "close"}),
	dialogue("connect-refused-then-next",
		[]string{"head", `send:HTTP/1.1 403 No\r\nContent-Length: 2\r\n\r\nno`, "head", okLast, "close"},
		[]string{`send:CONNECT far:9 HTTP/1.1\r\nHost: far:9\r\n\r\n`, "head", "recv:2", getFirst, "eof"}),
	dialogue("upgrade",
		[]string{"head", `send:HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: knock\r\n\r\nwho is there?`, "recv:24", "fin", "eof"},
		[]string{`send:GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: knock\r\n\r\n`, "head", "recv:13", "send:MARKER", "eof", "send:bye", "close"}),
	dialogue("upgrade-refused-then-next",
		[]string{"head", okHi, "head", okLast, "close"},
		[]string{`send:GET / HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: knock\r\n\r\n`, "recv:41", getFirst, "eof"}),
	dialogue("client-half-closes",
		[]string{"head", "await:DIR/shut", okLast, "close"},
		[]string{getFirst, "fin", "touch:DIR/shut", "eof"}),
	dialogue("client-resets-while-waiting",
		[]string{"head", "touch:DIR/got", "eof"},
		[]string{getFirst, "await:DIR/got", "rst"}),
	dialogue("client-leaves-in-the-body",
		[]string{"head", `send:HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n`, "pump:50M"},
		[]string{getFirst, "head", "recv:100", "rst"}),
	dialogue("head-in-single-bytes",
		[]string{"head", okLast, "close"},
		[]string{`dribble:GET /MARKER HTTP/1.1\r\nHost: web\r\n\r\n`, "eof"}),
	dialogue("answer-in-single-bytes",
		[]string{"head", `dribble:HTTP/1.1 200 OK\r\nContent-Length: 24\r\nConnection: close\r\n\r\nMARKER`, "close"},
		[]string{getFirst, "eof"}),
}}

// nginxScene asks a real nginx with a real curl.
var nginxScene = scene{
	name: "nginx",
	servers: func(t *testing.T, dir string) []service {
		return []service{{name: "web", port: 8080, argv: nginx(t, dir)}}
	},
	takes: []take{
		shell("get", "curl -sSi http://web:8080/hello.txt"),
		shell("get-full-name", "curl -sSi http://web.mesh:8080/hello.txt"),
		shell("ipv6", "curl -6 -sSi http://web:8080/hello.txt"),
		shell("ipv4", "curl -4 -sSi http://web:8080/hello.txt"),
		shell("head", "curl -sSI http://web:8080/hello.txt"),
		shell("missing", "curl -sSi http://web:8080/MARKER"),
		shell("range", "curl -sSi -r 3-9 http://web:8080/large.txt"),
		shell("ranges", "curl -sS -r 3-9,20-40 http://web:8080/large.txt | grep -av -e '^--' -e '^.--'"),
		shell("not-modified", "curl -sSi -H 'If-Modified-Since: Fri, 02 Jan 2026 03:04:05 GMT' http://web:8080/hello.txt"),
		shell("gzip-chunked", "curl -sSi --compressed http://web:8080/large.txt"),
		shell("http-1.0", "curl -0 -sSi http://web:8080/large.txt"),
		shell("keep-alive", "curl -sS -w '%{http_code} %{num_connects} %{size_download}\\n' 'http://web:8080/hello.txt?[1-300]' | sort | uniq -c"),
		shell("many-short", "curl -sS -H 'Connection: close' -w '%{http_code} %{num_connects}\\n' 'http://web:8080/hello.txt?[1-100]' | sort | uniq -c"),
		shell("absolute-form", "curl -sSi --proxy http://web:8080 http://web:8080/hello.txt"),
		shell("pipelining", `PEER dial web:8080 'send:GET /hello.txt HTTP/1.1\r\nHost: web\r\n\r\nGET /MARKER HTTP/1.1\r\nHost: web\r\n\r\nHEAD /hello.txt HTTP/1.1\r\nHost: web\r\n\r\nGET /hello.txt HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n' eof`),
		shell("big-request-head", "curl -sSi -H X-Fill:$(head -c 60000 /dev/zero | tr '\\0' x) http://web:8080/hello.txt"),
		shell("query", "curl -sSi 'http://web:8080/echo?q=MARKER&x=%2F%20y'"),
		shell("http-2", "curl -sSi --http2-prior-knowledge http://web:8081/hello.txt"),
		shell("http-2-many", "curl -sS --http2-prior-knowledge -w '%{http_code} %{num_connects} %{size_download}\\n' 'http://web:8081/large.txt?[1-100]' | grep -v line | sort | uniq -c"),
		shell("http-2-upgrade", "curl -sSi --http2 http://web:8080/hello.txt"),
		shell("http-2-nghttp", "nghttp http://web:8081/hello.txt"),
		shell("http-2-load", "h2load -n 3000 -c 4 -m 100 http://web:8081/hello.txt | grep -o '[0-9]* succeeded, [0-9]* failed'"),
	},
}

// nginx writes a configuration and a few files, and returns the command line.
func nginx(t *testing.T, dir string) []string {
	t.Helper()
	fixture(t, dir, "www/hello.txt", "hello, "+marker+"\n")
	fixture(t, dir, "www/large.txt", strings.Repeat("A line of text that is there to be compressed: "+marker+".\n", 5000))
	conf := write(t, dir, "nginx.conf", `
		daemon off; pid %[1]s/pid; error_log stderr; worker_processes 1; user root;
		events { }
		http {
			access_log off; default_type text/plain;
			client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi;
			uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
			large_client_header_buffers 4 64k; keepalive_requests 10000;
			gzip on; gzip_types text/plain; gzip_min_length 1000;
			server { listen [::]:8080 ipv6only=off; root %[1]s/www;
				location /echo { return 200 "$request_uri $host $http_user_agent\n"; } }
			server { listen [::]:8081 ipv6only=off http2; root %[1]s/www; }
		}`, dir)
	return []string{"nginx", "-e", "stderr", "-c", conf}
}

// pythonScene asks the server that everybody starts first.
var pythonScene = scene{
	name: "python",
	servers: func(t *testing.T, dir string) []service {
		fixture(t, dir, "hello.txt", "hello, "+marker+"\n")
		return []service{{name: "web", port: 8080, argv: []string{"/usr/bin/python3", "-m", "http.server", "--bind", "::", "--directory", dir, "8080"}}}
	},
	takes: []take{
		shell("get", "curl -sSi http://web:8080/hello.txt"),
		shell("head", "curl -sSI http://web:8080/hello.txt"),
		shell("list", "curl -sSi http://web:8080/"),
		shell("missing", "curl -sSi http://web:8080/MARKER"),
		shell("bad-method", "curl -sSi -X POST -d MARKER http://web:8080/"),
		shell("many", "curl -sS -w '%{http_code} %{num_connects}\\n' 'http://web:8080/hello.txt?[1-50]' | sort | uniq -c"),
		shell("http-1.0", "curl -0 -sSi http://web:8080/hello.txt"),
		shell("python-client", `/usr/bin/python3 -c '
import urllib.request
with urllib.request.urlopen("http://web:8080/hello.txt") as r: print(r.status, r.headers["Content-Length"], r.read())'`),
	},
}

// sinkScene uploads.
var sinkScene = scene{
	name: "upload",
	servers: func(*testing.T, string) []service {
		return []service{{name: "web", port: 8080, argv: peerCommand("sink", ":8080")}}
	},
	takes: []take{
		shell("small", "curl -sSi -d MARKER http://web:8080/"),
		shell("form", "echo MARKER >file; curl -sSi -F name=MARKER -F file=@file http://web:8080/ | grep -v -e sha256"),
		shell("100M", "yes MARKER | head -c 100M | cat >file; curl -sSi -T file http://web:8080/file"),
		shell("chunked", "yes MARKER | head -c 5M | curl -sSi -T - http://web:8080/file"),
		shell("chunked-http-1.0-answer", "yes MARKER | head -c 100K | curl -sSi -H 'Transfer-Encoding: chunked' --data-binary @- http://web:8080/file"),
		shell("expect-continue", "head -c 2M /dev/zero | curl -sSi -H 'Expect: 100-continue' --data-binary @- http://web:8080/file"),
		shell("trailers", `PEER dial web:8080 'send:POST / HTTP/1.1\r\nHost: web\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\nConnection: close\r\n\r\n18\r\nMARKER\r\n' 'send:3;ext=1\r\nend\r\n0\r\nX-Sum: 27\r\n\r\n' eof`),
		shell("too-big", "head -c 50M /dev/zero | curl -sS -o /dev/null -w '%{http_code}\\n' -T - -H Expect: http://web:8080/too-big 2>/dev/null; true"),
		shell("many", "for i in $(seq 5); do head -c 300K /dev/zero | curl -sS --data-binary @- http://web:8080/; done"),
	},
}

// webScene downloads, and leaves early.
var webScene = scene{
	name: "download",
	servers: func(*testing.T, string) []service {
		return []service{{name: "web", port: 8080, argv: peerCommand("web", ":8080")}}
	},
	takes: []take{
		shell("100M", "curl -sS 'http://web:8080/bytes?n=100M' | sha256sum"),
		shell("chunked-with-trailer", "curl -sSi --raw 'http://web:8080/stream?n=50'"),
		shell("chunked-20M", "curl -sS 'http://web:8080/stream?n=20M' | sha256sum"),
		shell("dribble", "curl -sSiN http://web:8080/dribble"),
		shell("big-answer-head", "curl -sSi 'http://web:8080/big?n=60000'"),
		shell("statuses", "for c in 201 204 205 302 304 400 404 418 500 503 599; do curl -sSi http://web:8080/status?code=$c; done"),
		shell("head-of-stream", "curl -sSI 'http://web:8080/stream?n=50'"),
		shell("parallel", "curl -sS --parallel --parallel-max 16 -o 'got#1' -w '%{http_code} %{size_download}\\n' 'http://web:8080/bytes?n=100K&[1-200]' | sort | uniq -c; cat got* | sha256sum"),
		clientLeaves,
		shell("cut-short", "curl -sS 'http://web:8080/bytes?n=100M' | head -c 1000 | sha256sum"),
	},
}

// clientLeaves: a server that is still thinking hears of it when its client has gone.
var clientLeaves = take{"client-leaves", func(t *testing.T, on stage, dir string) string {
	server := on.serve(t, service{name: "hang", port: 8080, argv: peerCommand("web", ":8080")})
	client := on.client(t, "", "curl", "-sS", "http://hang:8080/hang")
	server.awaitText(t, server.stdout, "client came")
	client.signal(syscall.SIGTERM)
	server.awaitText(t, server.stdout, "client gone")
	return server.stdout.String()
}}

// websocketScene upgrades.
var websocketScene = scene{
	name: "websocket",
	servers: func(*testing.T, string) []service {
		return []service{{name: "web", port: 8080, argv: peerCommand("websocket", ":8080")}}
	},
	takes: []take{
		shell("echo", "PEER wsdial web:8080 MARKER two $(head -c 70000 /dev/zero | tr '\\0' x)"),
		shell("not-upgraded", "curl -sSi http://web:8080/"),
	},
}
