package mtls

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/tls"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"hash"
	"io"
	"net"

	"golang.org/x/crypto/chacha20poly1305"
)

// half is one direction of the record protection (RFC 8446 sections 5.2, 5.3).
type half struct {
	suite  *suite
	secret []byte // what the present key was derived from
	aead   cipher.AEAD
	iv     [12]byte
	seq    uint64
	nonce  [12]byte
}

// suite is a cipher suite of TLS 1.3 (RFC 8446 appendix B.4).
type suite struct {
	newHash func() hash.Hash
	newAEAD func(key []byte) (cipher.AEAD, error)
	keyLen  int
}

var suites = map[uint16]*suite{
	tls.TLS_AES_128_GCM_SHA256:       {sha256.New, newGCM, 16},
	tls.TLS_AES_256_GCM_SHA384:       {sha512.New384, newGCM, 32},
	tls.TLS_CHACHA20_POLY1305_SHA256: {sha256.New, chacha20poly1305.New, chacha20poly1305.KeySize}, // where there is no AES in hardware
}

// init takes the first traffic secret.
func (h *half) init(id uint16, secret []byte) error {
	if h.suite = suites[id]; h.suite == nil {
		return fmt.Errorf("tls: cipher suite %s is not used between proxies", tls.CipherSuiteName(id))
	}
	if len(secret) != h.suite.newHash().Size() {
		return fmt.Errorf("tls: no traffic secret")
	}
	return h.derive(secret)
}

// derive makes key and IV of a traffic secret (section 7.3).
func (h *half) derive(secret []byte) error {
	key, err := expandLabel(h.suite.newHash, secret, "key", h.suite.keyLen)
	if err != nil {
		return err
	}
	iv, err := expandLabel(h.suite.newHash, secret, "iv", len(h.iv))
	if err != nil {
		return err
	}
	copy(h.iv[:], iv)
	h.secret, h.seq = secret, 0
	h.aead, err = h.suite.newAEAD(key)
	return err
}

// update goes on with the next traffic secret (section 7.2).
func (h *half) update() error {
	next, err := expandLabel(h.suite.newHash, h.secret, "traffic upd", len(h.secret))
	if err != nil {
		return err
	}
	return h.derive(next)
}

func newGCM(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// expandLabel is HKDF-Expand-Label of section 7.1, without a context.
func expandLabel(newHash func() hash.Hash, secret []byte, label string, n int) ([]byte, error) {
	label = "tls13 " + label
	info := binary.BigEndian.AppendUint16(nil, uint16(n))
	info = append(info, byte(len(label)))
	info = append(info, label...)
	info = append(info, 0)
	return hkdf.Expand(newHash, secret, string(info), n)
}

// next returns the nonce of the next record, which is good until the call after.
func (h *half) next() ([]byte, error) {
	if h.seq >= maxRecords {
		return nil, errExhausted
	}
	h.nonce = h.iv
	for i := range 8 {
		h.nonce[4+i] ^= byte(h.seq >> (56 - 8*i))
	}
	h.seq++
	return h.nonce[:], nil
}

// seal appends a whole record to b, whose capacity must suffice.
func (h *half) seal(b []byte, kind byte, p []byte) ([]byte, error) {
	nonce, err := h.next()
	if err != nil {
		return b, err
	}
	size := len(p) + overhead - headerLen
	at := len(b)
	b = append(b, recordData, 3, 3, byte(size>>8), byte(size))
	b = append(append(b, p...), kind)
	inner := b[at+headerLen:]
	sealed := h.aead.Seal(inner[:0], nonce, inner, b[at:at+headerLen])
	return b[:at+headerLen+len(sealed)], nil
}

// open decrypts body, appending to dst, which is body[:0] or does not overlap it.
func (h *half) open(dst, body, header []byte) ([]byte, error) {
	nonce, err := h.next()
	if err != nil {
		return nil, err
	}
	return h.aead.Open(dst, nonce, body, header)
}

// secrets collects the traffic secrets that crypto/tls writes to its KeyLogWriter.
type secrets struct{ client, server []byte }

// logged returns a copy of conf that writes its secrets to s.
func (s *secrets) logged(conf *tls.Config) *tls.Config {
	conf = conf.Clone()
	conf.KeyLogWriter = s
	return conf
}

// Write takes a line "LABEL client-random secret" (RFC 9850).
func (s *secrets) Write(line []byte) (int, error) {
	fields := bytes.Fields(line)
	if len(fields) != 3 {
		return 0, fmt.Errorf("tls: key log line of %d fields", len(fields))
	}
	var into *[]byte
	switch string(fields[0]) {
	case "CLIENT_TRAFFIC_SECRET_0":
		into = &s.client
	case "SERVER_TRAFFIC_SECRET_0":
		into = &s.server
	default:
		return len(line), nil
	}
	secret := make([]byte, hex.DecodedLen(len(fields[2])))
	if _, err := hex.Decode(secret, fields[2]); err != nil {
		return 0, err
	}
	*into = secret
	return len(line), nil
}

// recordReader gives crypto/tls one record at a time, so that it can't read
// beyond the handshake, into what is to be opened here.
type recordReader struct {
	net.Conn
	header [headerLen]byte
	have   int // bytes of header read
	given  int // bytes of header passed on
	left   int // bytes of the body to come
}

// Read implements io.Reader.
func (r *recordReader) Read(p []byte) (int, error) {
	if r.given == headerLen && r.left == 0 {
		r.have, r.given = 0, 0
	}
	if r.given < headerLen {
		for r.have < headerLen {
			n, err := r.Conn.Read(r.header[r.have:])
			r.have += n
			if err != nil {
				if err == io.EOF && r.have > 0 {
					err = io.ErrUnexpectedEOF
				}
				return 0, err
			}
		}
		r.left = int(r.header[3])<<8 | int(r.header[4])
		n := copy(p, r.header[r.given:])
		r.given += n
		return n, nil
	}
	n, err := r.Conn.Read(p[:min(len(p), r.left)])
	r.left -= n
	return n, err
}
