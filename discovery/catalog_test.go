package discovery

import (
	"fmt"
	"strings"
	"testing"

	"github.com/tulle-mesh/tulle/mesh"
)

func TestParseCatalog(t *testing.T) {
	catalog, err := ParseCatalog("services.yaml", []byte(`
# what runs elsewhere
services:
  - name: billing
    addresses: [192.0.2.10, "192.0.2.11:8081", "2001:db8::1", "[2001:db8::2]:81", "::ffff:192.0.2.12"]
    ports: [8443, 8080]
    protocol: http/1
  - {name: "7", addresses: [192.0.2.10], ports: ["5432"]}
`))
	if err != nil {
		t.Fatal(err)
	}
	if len(catalog.Services) != 2 || catalog.File != "services.yaml" {
		t.Fatalf("%+v", catalog)
	}
	billing, seven := catalog.Services[0], catalog.Services[1]
	if got, want := fmt.Sprint(billing), "{billing [{192.0.2.10 0} {192.0.2.11 8081} {2001:db8::1 0} {2001:db8::2 81} {192.0.2.12 0}] [8080 8443] http/1 4}"; got != want {
		t.Errorf("billing is %s, want %s", got, want)
	}
	if seven.Name != "7" || seven.Protocol != mesh.Unknown || seven.Line != 8 {
		t.Errorf("%+v", seven)
	}
	for _, empty := range []string{"", "# nothing\n", "---\n", "services:\n", "services: []\n", "null\n"} {
		if catalog, err := ParseCatalog("f", []byte(empty)); err != nil || len(catalog.Services) != 0 {
			t.Errorf("%q: %v, %v", empty, catalog, err)
		}
	}
}

func TestParseCatalogErrors(t *testing.T) {
	const head = "services:\n  - name: billing\n"
	tests := []struct{ name, text, want string }{
		{"port too large", head + "    addresses: [192.0.2.10]\n    ports:\n      - 8080\n      - 70000\n",
			`services.yaml:6: service "billing": port 70000: must be 1 to 65535`},
		{"port zero", head + "    addresses: [192.0.2.10]\n    ports: [0]\n", `services.yaml:4: service "billing": port 0: must be 1 to 65535`},
		{"port no number", head + "    addresses: [192.0.2.10]\n    ports: [http]\n", `services.yaml:4: service "billing": port "http": must be 1 to 65535`},
		{"port in hex", head + "    addresses: [192.0.2.10]\n    ports: [0x50]\n", `services.yaml:4: service "billing": port "0x50": must be 1 to 65535`},
		{"port twice", head + "    addresses: [192.0.2.10]\n    ports: [80, 80]\n", `services.yaml:4: service "billing": port 80 appears twice`},
		{"ports no list", head + "    addresses: [192.0.2.10]\n    ports: 80\n", `services.yaml:4: service "billing": ports: must be a list, not "80"`},
		{"port a list", head + "    addresses: [192.0.2.10]\n    ports: [[80]]\n", `services.yaml:4: service "billing": port: must be a plain value, not a list
services.yaml:4: service "billing": port "": must be 1 to 65535`},
		{"no ports", head + "    addresses: [192.0.2.10]\n", `services.yaml:2: service "billing": has no ports; add "ports: [8080]"`},
		{"empty ports", head + "    addresses: [192.0.2.10]\n    ports: []\n", `services.yaml:4: service "billing": ports: must not be empty`},
		{"no addresses", head + "    ports: [80]\n", `services.yaml:2: service "billing": has no addresses; add "addresses: [192.0.2.10]"`},
		{"host name", head + "    addresses: [db.example.com]\n    ports: [80]\n",
			`services.yaml:3: service "billing": address "db.example.com": must be an IP address, or IP:PORT or [IPv6]:PORT; of a host name, list the addresses it has`},
		{"address port zero", head + "    addresses: ['192.0.2.1:0']\n    ports: [80]\n", `services.yaml:3: service "billing": address "192.0.2.1:0": port 0: must be 1 to 65535`},
		{"loopback", head + "    addresses: [127.0.0.1]\n    ports: [80]\n",
			`services.yaml:3: service "billing": address "127.0.0.1": is loopback, which every workload has for itself; use an address that workloads can reach`},
		{"unspecified", head + "    addresses: ['::']\n    ports: [80]\n", `services.yaml:3: service "billing": address "::": cannot be dialled`},
		{"broadcast", head + "    addresses: [255.255.255.255]\n    ports: [80]\n", `services.yaml:3: service "billing": address "255.255.255.255": cannot be dialled`},
		{"multicast", head + "    addresses: ['ff02::1']\n    ports: [80]\n", `services.yaml:3: service "billing": address "ff02::1": cannot be dialled`},
		{"zone", head + "    addresses: ['fe80::1%eth0']\n    ports: [80]\n", `services.yaml:3: service "billing": address "fe80::1%eth0": has a zone, which means nothing to other machines`},
		{"address twice", head + "    addresses: [192.0.2.1, '::ffff:192.0.2.1']\n    ports: [80]\n", `services.yaml:3: service "billing": address "::ffff:192.0.2.1" appears twice`},
		{"protocol", head + "    addresses: [192.0.2.1]\n    ports: [80]\n    protocol: http\n", `services.yaml:5: service "billing": protocol "http": must be http/1, http/2 or tcp`},
		{"unknown field", head + "    addresses: [192.0.2.1]\n    ports: [80]\n    port: 80\n",
			`services.yaml:5: service "billing": unknown field "port"; known are name, addresses, ports, protocol`},
		{"field twice", head + "    addresses: [192.0.2.1]\n    ports: [80]\n    name: x\n", `services.yaml:5: service "billing": field "name" appears twice`},
		{"unknown top field", "service: []\n", `services.yaml:1: unknown field "service"; known are services`},
		{"top is a list", "- name: x\n", `services.yaml:1: must have the form "services: …", not be a list`},
		{"top is a word", "hello\n", `services.yaml:1: must have the form "services: …", not be "hello"`},
		{"services is a mapping", "services: {billing: {}}\n", `services.yaml:1: services: must be a list, not a mapping`},
		{"service is a word", "services:\n  - billing\n", `services.yaml:2: must have the form "name: …", not be "billing"`},
		{"bad name", "services:\n  - {name: Billing_1, addresses: [192.0.2.1], ports: [80]}\n",
			`services.yaml:2: service "Billing_1": name "Billing_1": must have 1 to 63 characters of a-z, 0-9 and inner '-'`},
		{"no name", "services:\n  - {addresses: [192.0.2.1], ports: [80]}\n", `services.yaml:2: a service without a name; add "name: …"`},
		{"empty name", "services:\n  - {name: , addresses: [192.0.2.1], ports: [80]}\n", `services.yaml:2: name: must be a plain value, not empty
services.yaml:2: name "": must have 1 to 63 characters of a-z, 0-9 and inner '-'
services.yaml:2: a service without a name; add "name: …"`},
		{"same name", "services:\n  - {name: a, addresses: [192.0.2.1], ports: [80]}\n  - {name: a, addresses: [192.0.2.2], ports: [80]}\n",
			`services.yaml:3: service "a": is on line 2 already; list all its addresses there`},
		{"same address", "services:\n  - {name: a, addresses: [192.0.2.1], ports: [80]}\n  - {name: b, addresses: ['192.0.2.1:80'], ports: [81]}\n",
			`services.yaml:3: service "b": 192.0.2.1:80 belongs to service "a" already`},
		{"alias", "services:\n  - &x {name: a, addresses: [192.0.2.1], ports: [80]}\n  - *x\n", `services.yaml:3: must have the form "name: …", not be an alias`},
		{"merge key", "services:\n  - {<<: {name: a}, addresses: [192.0.2.1], ports: [80]}\n", `services.yaml:2: unknown field "<<"; known are name, addresses, ports, protocol
services.yaml:2: a service without a name; add "name: …"`},
		{"all at once", head + "    addresses: [x]\n    ports: [99999]\n    protocol: ftp\n", `services.yaml:3: service "billing": address "x": must be an IP address, or IP:PORT or [IPv6]:PORT; of a host name, list the addresses it has
services.yaml:4: service "billing": port 99999: must be 1 to 65535
services.yaml:5: service "billing": protocol "ftp": must be http/1, http/2 or tcp`},
		{"two documents", "services: []\n---\nservices: []\n", `services.yaml:2: a second document; put all services into one list`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			catalog, err := ParseCatalog("services.yaml", []byte(tt.text))
			if err == nil || err.Error() != tt.want {
				t.Errorf("got\n%v\nwant\n%s", err, tt.want)
			}
			if catalog != nil {
				t.Error("refused and yet returned")
			}
		})
	}
}

func TestParseCatalogBadYAML(t *testing.T) {
	const bad = ": not valid YAML, here or below: "
	for text, want := range map[string]string{
		"services:\n  - name: a\n   ports: [80]\n": "services.yaml:1" + bad,
		"services: [":                  "services.yaml:1" + bad,
		"services: []\n---\n[":         "services.yaml:3" + bad,
		"\tservices: []":               "services.yaml:1" + bad,
		"services: *nobody":            "services.yaml:1" + bad + "unknown anchor",
		"\x00":                         "services.yaml:1" + bad + "control characters",
		"\xff\xfe\xfd":                 "services.yaml:1" + bad,
		strings.Repeat("[", 20000):     "services.yaml:1" + bad,
		strings.Repeat("# x\n", 1<<19): "services.yaml: 2097152 bytes, at most 1048576 are allowed",
	} {
		_, err := ParseCatalog("services.yaml", []byte(text))
		if err == nil || !strings.HasPrefix(err.Error(), want) || len(err.Error()) > 300 {
			t.Errorf("%.40q: %v, want %q", text, err, want)
		}
	}
}

func TestParseCatalogBounds(t *testing.T) {
	many := &strings.Builder{}
	many.WriteString("services:\n")
	for i := range maxCatalogServices + 1 {
		fmt.Fprintf(many, "- {name: s%d, addresses: [192.0.2.1], ports: [80]}\n", i)
	}
	if _, err := ParseCatalog("f", []byte(many.String())); err == nil || !strings.Contains(err.Error(), "at most 4096") {
		t.Errorf("too many services: %v", err)
	}
	ports := strings.TrimSuffix(strings.Repeat("1,", maxCatalogList+1), ",")
	if _, err := ParseCatalog("f", []byte("services: [{name: a, addresses: [192.0.2.1], ports: ["+ports+"]}]")); err == nil || !strings.Contains(err.Error(), "at most 256") {
		t.Errorf("too many ports: %v", err)
	}
	wrong := &strings.Builder{}
	wrong.WriteString("services:\n")
	for range 1000 {
		wrong.WriteString("- x\n")
	}
	_, err := ParseCatalog("f", []byte(wrong.String()))
	if err == nil || strings.Count(err.Error(), "\n") != maxCatalogErrors || !strings.HasSuffix(err.Error(), "and 980 more") {
		t.Errorf("many errors: %v", err)
	}
	// What is quoted is bounded, and printable.
	_, err = ParseCatalog("f", []byte("services: [{name: \"\\e[31m"+strings.Repeat("é", 1000)+"\"}]"))
	if err == nil || len(err.Error()) > 1500 || strings.ContainsRune(err.Error(), '\x1b') {
		t.Errorf("long name: %v", err)
	}
}

func FuzzParseCatalog(f *testing.F) {
	for _, text := range []string{
		"services:\n  - name: billing\n    addresses: [192.0.2.10, \"2001:db8::1\", \"192.0.2.1:80\"]\n    ports: [8080]\n    protocol: http/1\n",
		"services: [{name: a, addresses: [192.0.2.1], ports: [80]}, {name: a}]",
		"services: &x [*x]", "- <<: 1", "---\n---\n", "services:\n- name: \"\\x00\"\n  ports: [0x1, 1e3, 070, 1_0]\n", "? [a]\n: b",
	} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, content []byte) {
		catalog, err := ParseCatalog("f", content)
		if err != nil {
			if catalog != nil {
				t.Error("refused and yet returned")
			}
			for line := range strings.SplitSeq(err.Error(), "\n") {
				if !strings.HasPrefix(line, "f:") {
					t.Errorf("error line %q does not name the file", line)
				}
			}
			return
		}
		s, err := NewState(testConfig())
		if err != nil {
			t.Fatal(err)
		}
		if err := s.SetCatalog(catalog); err != nil {
			return // an address of the mesh's own
		}
		for _, service := range s.Load().Services() {
			if mesh.CheckName(service.Name) != nil || len(service.listedAddrs()) == 0 {
				t.Errorf("accepted %+v", service)
			}
			for _, addr := range service.listedAddrs() {
				if len((Match{Service: service, Addr: addr}).Destination().GetEndpoints()) == 0 {
					t.Errorf("%s is listed and leads nowhere", addr)
				}
			}
		}
	})
}

func TestMissingCatalog(t *testing.T) {
	path := t.TempDir() + "/services.yaml"
	_, err := readBounded(path)
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("missing: %v", err)
	}
	if _, err := readBounded(t.TempDir()); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("a directory: %v", err)
	}
}
