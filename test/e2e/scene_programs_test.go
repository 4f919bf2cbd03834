package e2e

import (
	"path/filepath"
	"testing"
)

// redisScene: RESP, pipelines, subscriptions.
var redisScene = scene{
	name: "redis",
	servers: func(t *testing.T, dir string) []service {
		return []service{{name: "db", port: 6379, argv: []string{"redis-server", "--port", "6379", "--save", "",
			"--protected-mode", "no", "--bind", "*", "-::*", "--dir", dir, "--daemonize", "no", "--loglevel", "warning"}}}
	},
	takes: []take{
		shell("ping", "redis-cli -h db ping"),
		shell("set-get", "redis-cli -h db set MARKER MARKER; redis-cli -h db get MARKER"),
		shell("pipeline", "for i in $(seq 5000); do echo SET key$i MARKER; done | redis-cli -h db --pipe; redis-cli -h db dbsize"),
		shell("large", "head -c 20M /dev/zero | redis-cli -h db -x set large; redis-cli -h db get large | sha256sum"),
		shell("publish-subscribe", `redis-cli -h db subscribe news >heard & until grep -q subscribe heard; do sleep 0.01; done
			redis-cli -h db publish news MARKER; until grep -q MARKER heard; do sleep 0.01; done; kill %1; cat heard`),
		shell("inline", `PEER dial db:6379 'send:PING\r\nECHO MARKER\r\nQUIT\r\n' eof`),
		shell("blocking", "(redis-cli -h db blpop queue 20; echo popped) & redis-cli -h db lpush queue MARKER >/dev/null; wait"),
		shell("benchmark", "redis-benchmark -h db -n 3000 -c 20 -P 4 -t ping,set,get -q --csv | cut -d, -f1"),
		shell("benchmark-connections", "redis-benchmark -h db -n 300 -c 10 -k 0 -t ping -q --csv | cut -d, -f1"),
	},
}

// postgresScene: a protocol whose client asks for TLS first, cancel requests on
// a second connection, COPY both ways.
var postgresScene = scene{
	name: "postgres",
	servers: func(t *testing.T, dir string) []service {
		bin := newest(t, "/usr/lib/postgresql/*/bin")
		data := dir + "/data"
		must(t, asUser("postgres", []string{bin + "/initdb", "--no-sync", "--auth=trust", "-D", data})...)
		write(t, data, "pg_hba.conf", "host all all all trust\n")
		return []service{{name: "db", port: 5432, user: "postgres", argv: []string{bin + "/postgres", "-D", data, "-h", "*", "-k", dir, "-F"}}}
	},
	takes: []take{
		shell("select", "psql -h db -U postgres -Atc \"select 'MARKER', repeat('x', 100000)\" | sha256sum; psql -h db -U postgres -Atc \"select 'MARKER'\""),
		shell("error", "psql -h db -U postgres -c 'select MARKER' 2>&1; psql -h db -U nobody -d MARKER -c 'select 1' 2>&1 | sed 's/.*FATAL/FATAL/'"),
		shell("copy", `psql -h db -U postgres -qc 'create table c (n int, t text)'
			for i in $(seq 20000); do echo "$i	MARKER"; done >rows
			psql -h db -U postgres -c '\copy c from rows' -c '\copy c to back'; cmp rows back && sha256sum <back`),
		shell("cancel", "psql -h db -U postgres -c \"set statement_timeout = '50ms'\" -c 'select pg_sleep(20)' 2>&1; timeout --foreground -s INT 1 psql -h db -U postgres -c 'select pg_sleep(20)' 2>&1"),
		shell("listen", "psql -h db -U postgres -Atc 'listen n' -c \"notify n, 'MARKER'\" 2>&1 | sed 's/PID [0-9]*/PID/'"),
		shell("pgbench", "pgbench -h db -U postgres -i -s 1 -q postgres 2>&1 | grep -c done; pgbench -h db -U postgres -c 4 -t 50 -C postgres 2>/dev/null | grep -e processed -e failed"),
	},
}

// mariadbScene: the server speaks first.
var mariadbScene = scene{
	name: "mariadb",
	servers: func(t *testing.T, dir string) []service {
		data := dir + "/data"
		must(t, "mariadb-install-db", "--no-defaults", "--user=mysql", "--datadir="+data, "--auth-root-authentication-method=normal", "--skip-test-db")
		return []service{{name: "db", port: 3306, user: "mysql", argv: []string{"mariadbd", "--no-defaults", "--datadir=" + data,
			"--socket=" + dir + "/socket", "--pid-file=" + data + "/pid", "--bind-address=*", "--skip-grant-tables", "--skip-networking=0",
			"--skip-name-resolve", "--innodb-flush-log-at-trx-commit=0"}}}
	},
	takes: []take{
		shell("select", "mariadb --no-defaults -h db -u root -Be \"select 'MARKER' as m, version()\""),
		shell("bulk", `(echo "create database d; use d; create table t (n int, s varchar(100));"
			for i in $(seq 5000); do echo "insert into t values ($i, 'MARKER');"; done; echo "select count(*), min(s), sum(n) from t;") | mariadb --no-defaults -h db -u root -B`),
		shell("large", "mariadb --no-defaults -h db -u root -BNe \"select repeat('MARKER', 100000)\" | sha256sum"),
		shell("error", "mariadb --no-defaults -h db -u root -Be 'select MARKER' 2>&1"),
		shell("many", "for i in $(seq 20); do mariadb --no-defaults -h db -u root -BNe \"select $i\"; done"),
	},
}

// smtpScene: the server speaks first, and the client waits for it.
var smtpScene = scene{
	name: "smtp",
	servers: func(*testing.T, string) []service {
		return []service{{name: "mail", port: 25, argv: peerCommand("smtpd", ":25")}}
	},
	takes: []take{
		shell("curl", "yes MARKER | head -n 1000 >letter; curl -sS -v smtp://mail --mail-from a@x --mail-rcpt b@y -T letter 2>&1 | grep '^[<>]'"),
		shell("python", `/usr/bin/python3 -c '
import smtplib
s = smtplib.SMTP("mail", 25, "me"); print(s.ehlo()); print(s.sendmail("a@x", ["b@y"], "Subject: MARKER\r\n\r\nhi\r\n")); print(s.quit())'`),
	},
}

// tlsScene: the application's own TLS passes through, with its own certificate.
var tlsScene = scene{
	name: "tls",
	servers: func(t *testing.T, dir string) []service {
		key, cert := certificateOfTheApp(t)
		fixture(t, dir, "hello.txt", "hello, "+marker+"\n")
		return []service{
			{name: "web", port: 8443, argv: []string{"sh", "-c", "cd " + dir + " && exec openssl s_server -accept 8443 -key " + key + " -cert " + cert + " -WWW -alpn http/1.1"}},
			{name: "rev", port: 8444, argv: []string{"openssl", "s_server", "-accept", "8444", "-key", key, "-cert", cert, "-quiet", "-rev"}},
		}
	},
	takes: []take{
		shell("certificate", "openssl s_client -connect web:8443 -servername web -alpn h3,http/1.1 </dev/null 2>/dev/null | grep -e ALPN -e ^subject -e ^issuer; openssl s_client -connect web:8443 </dev/null 2>/dev/null | openssl x509 -noout -fingerprint"),
		shell("get", "curl -skSi --no-alpn https://web:8443/hello.txt"),
		shell("tls-1.2", "curl -skS --no-alpn --tls-max 1.2 https://web:8443/hello.txt"),
		shell("wrong-ca", "curl -sS https://web:8443/hello.txt 2>&1"),
		shell("stream", "printf 'MARKER\\nCLOSE\\n' | openssl s_client -quiet -connect rev:8444 2>/dev/null"),
		shell("garbage", `PEER dial web:8443 'send:\x16\x03\x01\x00\x05hello' eof | cut -c1-40`),
	},
}

// socatScene: the classic.
var socatScene = scene{
	name: "socat",
	servers: func(*testing.T, string) []service {
		return []service{
			{name: "sum", port: 9000, argv: []string{"socat", "-t", "20", "TCP6-LISTEN:9000,fork,reuseaddr,ipv6only=0", "EXEC:sha256sum"}},
			{name: "say", port: 9001, argv: []string{"socat", "-t", "20", "-U", "TCP6-LISTEN:9001,fork,reuseaddr,ipv6only=0", "EXEC:echo " + marker}},
		}
	},
	takes: []take{
		shell("half-close", "yes MARKER | head -c 5M | socat -t 20 - TCP:sum:9000"),
		shell("half-close-empty", "socat -t 20 - TCP:sum:9000 </dev/null"),
		shell("half-close-ipv6", "echo MARKER | socat -t 20 - TCP6:sum:9000"),
		shell("server-says", "socat -t 20 -u TCP:say:9001 -"),
		shell("bash", "exec 3<>/dev/tcp/say/9001; cat <&3"),
	},
}

// certificateOfTheApp makes a self-signed certificate, once for a run.
func certificateOfTheApp(t *testing.T) (key, cert string) {
	t.Helper()
	key, cert = scratchRoot+"/app.key", scratchRoot+"/app.crt"
	if fileExists(cert) != nil {
		must(t, "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
			"-keyout", key, "-out", cert, "-days", "30", "-subj", "/CN=the app's own")
	}
	return key, cert
}

// newest returns the last match of a pattern: of several installed versions, one.
func newest(t *testing.T, pattern string) string {
	t.Helper()
	found, _ := filepath.Glob(pattern)
	if len(found) == 0 {
		t.Fatalf("%s: not installed; type: apt-get install $(cat test/e2e/packages.txt)", pattern)
	}
	return found[len(found)-1]
}
