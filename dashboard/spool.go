package dashboard

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// A spool keeps the history over a restart: files to which a frame is appended
// for each column. A frame is its payload's length and CRC-32C, four bytes
// each, big-endian, and the payload:
//
//	uvarint first slice, uvarint slices
//	uvarint number of series that this file has not named yet, and of each its
//	  ten strings, each as uvarint length and bytes; they are numbered from 0
//	of each series: uvarint number, uvarint length, amount
//
// A file is only ever appended to by the process that made it. What a crash
// leaves of a frame fails its check, and the file ends there. Nothing is
// flushed to the disk in between: a power cut may cost the last half minute.
type spool struct {
	dir     string
	file    *os.File
	began   int64 // slice
	named   map[uint32]namedSeries
	names   int
	scratch []byte
}

type namedSeries struct {
	key    *seriesKey
	number uint64
}

const (
	spoolMagic  = "tulle hour 2\n"
	spoolPrefix = "hour-"
	spoolSuffix = ".log"
	spoolSlices = int64(10 * time.Minute / slice) // in one file
	maxFrame    = 64 << 20
	frameHead   = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// write appends columns; keys are the series' names by their numbers.
func (s *spool) write(columns []*column, keys []*seriesKey, now time.Time) error {
	for _, c := range columns {
		if s.file == nil || c.first-s.began >= spoolSlices {
			if err := s.next(c.first, now); err != nil {
				return err
			}
		}
		s.scratch = s.appendFrame(s.scratch[:0], c, keys)
		if _, err := s.file.Write(s.scratch); err != nil {
			return fmt.Errorf("keep the history: %w", err)
		}
	}
	return nil
}

func (s *spool) appendFrame(b []byte, c *column, keys []*seriesKey) []byte {
	var fresh, amounts, one []byte
	count := 0
	c.each(func(id uint32, a amount) {
		name, ok := s.named[id]
		if !ok || name.key != keys[id] {
			name = namedSeries{keys[id], uint64(s.names)}
			s.named[id] = name
			s.names++
			count++
			for _, field := range keys[id].fields() {
				fresh = binary.AppendUvarint(fresh, uint64(len(*field)))
				fresh = append(fresh, *field...)
			}
		}
		one = appendAmount(one[:0], a)
		amounts = binary.AppendUvarint(amounts, name.number)
		amounts = binary.AppendUvarint(amounts, uint64(len(one)))
		amounts = append(amounts, one...)
	})
	b = append(b, make([]byte, frameHead)...)
	b = binary.AppendUvarint(b, uint64(c.first))
	b = binary.AppendUvarint(b, uint64(c.span))
	b = binary.AppendUvarint(b, uint64(count))
	b = append(append(b, fresh...), amounts...)
	binary.BigEndian.PutUint32(b, uint32(len(b)-frameHead))
	binary.BigEndian.PutUint32(b[4:], crc32.Checksum(b[frameHead:], castagnoli))
	return b
}

// fields are the strings of a key in the order in which files have them.
func (k *seriesKey) fields() []*string {
	e, r := &k.edge, &k.replica
	return []*string{&e.source, &e.kind, &e.identity, &e.service, &e.serviceKind, &e.security, &e.protocol, &r.service, &r.workload, &r.address}
}

// next begins another file, and removes those that are older than the hour.
func (s *spool) next(first int64, now time.Time) error {
	if err := s.close(); err != nil {
		return err
	}
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("keep the history: %w", err)
	}
	files, err := spoolFiles(s.dir)
	if err != nil {
		return err
	}
	for _, f := range files {
		if now.Sub(f.made) > time.Hour+2*time.Duration(spoolSlices)*slice {
			if err := os.Remove(f.path); err != nil {
				return fmt.Errorf("keep the history: %w", err)
			}
		}
	}
	made := now
	if n := len(files); n > 0 && !made.After(files[n-1].made) { // in the same instant, or the clock was set back
		made = files[n-1].made.Add(time.Millisecond)
	}
	path := filepath.Join(s.dir, fmt.Sprintf("%s%014d%s", spoolPrefix, made.UnixMilli(), spoolSuffix))
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("keep the history: %w", err)
	}
	s.file, s.began, s.named, s.names = file, first, map[uint32]namedSeries{}, 0
	if _, err := file.WriteString(spoolMagic); err != nil {
		return fmt.Errorf("keep the history: %w", err)
	}
	return nil
}

func (s *spool) close() error {
	if s.file == nil {
		return nil
	}
	err := errors.Join(s.file.Sync(), s.file.Close())
	s.file = nil
	if err != nil {
		return fmt.Errorf("keep the history: %w", err)
	}
	return nil
}

type spoolFile struct {
	path string
	made time.Time
}

// spoolFiles lists the files of a directory, the oldest first. One that does
// not exist has none.
func spoolFiles(dir string) ([]spoolFile, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read the history: %w", err)
	}
	var files []spoolFile
	for _, entry := range entries {
		stamp, ok := strings.CutPrefix(strings.TrimSuffix(entry.Name(), spoolSuffix), spoolPrefix)
		ms, err := strconv.ParseInt(stamp, 10, 64)
		if ok && err == nil && entry.Type().IsRegular() && strings.HasSuffix(entry.Name(), spoolSuffix) {
			files = append(files, spoolFile{filepath.Join(dir, entry.Name()), time.UnixMilli(ms)})
		}
	}
	slices.SortFunc(files, func(a, b spoolFile) int { return a.made.Compare(b.made) })
	return files, nil
}

// load reads what a directory has of the hour before a slice into the history,
// and returns the slice that comes next.
func (h *history) load(dir string, before int64, log *slog.Logger) (next int64, err error) {
	files, err := spoolFiles(dir)
	if err != nil {
		return 0, err
	}
	for _, f := range files {
		if f.made.Before(sliceStart(before - keepSlices - 2*spoolSlices)) {
			continue
		}
		file, err := os.Open(f.path)
		if err != nil {
			return next, fmt.Errorf("read the history: %w", err)
		}
		err = h.loadFile(file, before, &next)
		_ = file.Close()
		if err != nil { // what was read before is good
			log.Info("history file ends early", "file", f.path, "reason", err)
		}
	}
	return next, nil
}

var errNoSpool = errors.New("not a history file")

func (h *history) loadFile(r io.Reader, before int64, next *int64) error {
	in := bufio.NewReader(r)
	magic := make([]byte, len(spoolMagic))
	if _, err := io.ReadFull(in, magic); err != nil || string(magic) != spoolMagic {
		return errNoSpool
	}
	var keys []seriesKey
	var head [frameHead]byte
	for {
		if _, err := io.ReadFull(in, head[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		length := binary.BigEndian.Uint32(head[:])
		if length > maxFrame {
			return fmt.Errorf("a frame of %d bytes", length)
		}
		payload, err := io.ReadAll(io.LimitReader(in, int64(length))) // allocates no more than there is
		if err != nil {
			return err
		}
		if len(payload) != int(length) || crc32.Checksum(payload, castagnoli) != binary.BigEndian.Uint32(head[4:]) {
			return errors.New("a frame is damaged")
		}
		if keys, err = h.loadFrame(payload, keys, before, next); err != nil {
			return err
		}
	}
}

var errBadFrame = errors.New("a frame makes no sense")

// loadFrame pushes one column. It returns the keys of the file so far.
func (h *history) loadFrame(payload []byte, keys []seriesKey, before int64, next *int64) ([]seriesKey, error) {
	f := payloadReader{rest: payload}
	first, span, fresh := f.number(), f.number(), f.number()
	for ; fresh > 0 && !f.bad; fresh-- {
		var key seriesKey
		for _, field := range key.fields() {
			*field = string(f.bytes(maxPath))
		}
		keys = append(keys, key)
	}
	if f.bad || first > uint64(before) || span == 0 || span > uint64(coarseSpan) {
		return keys, errBadFrame
	}
	c := column{first: int64(first), span: int64(span)}
	skip := c.first < *next || c.first+c.span > before || c.first <= before-keepSlices
	amounts := map[uint32]amount{}
	for len(f.rest) > 0 {
		number, body := f.number(), f.bytes(maxFrame)
		a, ok := readAmount(body)
		if f.bad || !ok || number >= uint64(len(keys)) || !a.latency.valid() {
			return keys, errBadFrame
		}
		if !skip {
			id := h.id(keys[number], c.first)
			amounts[id] = amounts[id].plus(a)
		}
	}
	if !skip {
		h.push(newColumn(c.first, c.span, amounts))
		*next = c.first + c.span
	}
	return keys, nil
}

// payloadReader reads a payload.
type payloadReader struct {
	rest []byte
	bad  bool
}

func (f *payloadReader) number() uint64 {
	v, n := binary.Uvarint(f.rest)
	if n <= 0 {
		f.bad, f.rest = true, nil
		return 0
	}
	f.rest = f.rest[n:]
	return v
}

func (f *payloadReader) bytes(most uint64) []byte {
	n := f.number()
	if n > most || n > uint64(len(f.rest)) {
		f.bad, f.rest = true, nil
		return nil
	}
	b := f.rest[:n]
	f.rest = f.rest[n:]
	return b
}
