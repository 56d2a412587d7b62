package link

import (
	"errors"
	"fmt"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
)

// MaxDescriptorParts is how many parts (messages, fields, methods, values,
// options) the descriptors of one gateway may have together. Real ones take
// some 30 bytes for each.
const MaxDescriptorParts = 250_000

// maxDescriptorDepth is how deeply parts may lie within each other.
const maxDescriptorDepth = 64

var fileDescriptor = (*descriptorpb.FileDescriptorProto)(nil).ProtoReflect().Descriptor()

// ReadDescriptor reads a file descriptor that somebody else wrote. An empty
// part takes two bytes and becomes hundreds in memory, so they are counted,
// down in left, before anything is built of them.
func ReadDescriptor(raw []byte, left *int) (*descriptorpb.FileDescriptorProto, error) {
	if err := countParts(raw, fileDescriptor, maxDescriptorDepth, left); err != nil {
		return nil, err
	}
	file := new(descriptorpb.FileDescriptorProto)
	if err := proto.Unmarshal(raw, file); err != nil {
		return nil, err
	}
	return file, nil
}

func countParts(b []byte, d protoreflect.MessageDescriptor, depth int, left *int) error {
	if depth == 0 {
		return errors.New("a descriptor is nested too deeply")
	}
	for len(b) > 0 {
		num, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return protowire.ParseError(n)
		}
		b = b[n:]
		if n = protowire.ConsumeFieldValue(num, typ, b); n < 0 {
			return protowire.ParseError(n)
		}
		value := b[:n]
		b = b[n:]
		f := d.Fields().ByNumber(num)
		if typ != protowire.BytesType || f == nil || !f.IsList() && f.Message() == nil {
			continue
		}
		if *left--; *left < 0 {
			return fmt.Errorf("the descriptors have more than %d parts", MaxDescriptorParts)
		}
		if f.Message() != nil {
			inner, _ := protowire.ConsumeBytes(value)
			if err := countParts(inner, f.Message(), depth-1, left); err != nil {
				return err
			}
		}
	}
	return nil
}
