package link

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"
)

// TestRealDescriptors: every file that is linked in here is read as it is.
func TestRealDescriptors(t *testing.T) {
	left, files := MaxDescriptorParts, 0
	protoregistry.GlobalFiles.RangeFiles(func(f protoreflect.FileDescriptor) bool {
		want := protodesc.ToFileDescriptorProto(f)
		raw, err := proto.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		got, err := ReadDescriptor(raw, &left)
		if err != nil || !proto.Equal(got, want) {
			t.Errorf("%s: %v", f.Path(), err)
		}
		files++
		return true
	})
	if files < 10 || left == MaxDescriptorParts {
		t.Fatalf("%d files, %d parts", files, MaxDescriptorParts-left)
	}
}

// TestDescriptorBombs: few bytes do not become much memory.
func TestDescriptorBombs(t *testing.T) {
	nested := []byte{}
	for range 2 * maxDescriptorDepth {
		inner, err := proto.Marshal(&descriptorpb.DescriptorProto{Name: proto.String("M")})
		if err != nil {
			t.Fatal(err)
		}
		nested = append(inner, append([]byte{0x1a, byte(len(nested)&0x7f | 0x80), byte(len(nested) >> 7)}, nested...)...)
	}
	nested = append([]byte{0x22, byte(len(nested)&0x7f | 0x80), byte(len(nested) >> 7)}, nested...)
	if err := proto.Unmarshal(nested, new(descriptorpb.FileDescriptorProto)); err != nil {
		t.Fatal(err) // it is well formed
	}
	for name, raw := range map[string][]byte{
		"messages":     bytes.Repeat([]byte{0x22, 0}, MaxDescriptorParts+1),
		"dependencies": bytes.Repeat([]byte{0x1a, 0}, MaxDescriptorParts+1),
		"depth":        nested,
		"cut":          {0x22, 5},
	} {
		left := MaxDescriptorParts
		if _, err := ReadDescriptor(raw, &left); err == nil {
			t.Errorf("%s: it was read", name)
		}
	}
}
