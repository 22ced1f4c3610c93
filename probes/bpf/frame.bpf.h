/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* What is read of a frame and of its code object. Also compiled for the host, as python.bpf.h is. */
#ifndef FRAME_BPF_H
#define FRAME_BPF_H

/* What is read of a frame or a code object. Offsets into it are masked, so that any field stays inside whatever the layout says. */
union fields {
	__u64 words[16];
	__u32 halves[32];
	__u8 bytes[128];
};

static __always_inline __u64 field64(const union fields *fields, __u32 offset)
{
	return fields->words[offset >> 3 & 15];
}

static __always_inline __u32 field32(const union fields *fields, __u32 offset)
{
	return fields->halves[offset >> 2 & 31];
}

/* Of a frame the words in which the fields that are wanted stand; of one that the layout has not, any. */
struct frame_words {
	__u64 back;
	__u64 code;
	__u64 position;
	__u64 owner;
	__u64 bytecode_index;
};

/* And of a code object. */
struct code_words {
	__u64 line_table;
	__u64 filename;
	__u64 name;
	__u64 first_line;
	__u64 version;
};

/* A field of four bytes, or of one, in its word. */
static __always_inline __u32 half_of(__u64 word, __u32 offset)
{
	return word >> (offset & 4) * 8;
}

static __always_inline __u8 byte_of(__u64 word, __u32 offset)
{
	return word >> (offset & 7) * 8;
}

/* What is read of a frame and of its code object. */
struct frame_read {
	struct frame_words frame;
	struct code_words code;
	__u64 address; /* of the code object */
	__u64 has_code; /* 0: a code object in the file itself (deep-frozen modules), whose page is not there yet */
};

/* Room for it, which is not on the stack of a program: a chain of calls has 512 bytes of that (before Linux 6.13). */
struct reading {
	union fields fields;
	struct frame_read read;
};

#endif
