/* SPDX-License-Identifier: GPL-2.0 OR MIT OR Apache-2.0 */
/* The kernel's names for types, for code of the probes that is compiled for the host. */
#ifndef HOST_H
#define HOST_H

#include <stdbool.h>
#include <stddef.h>

typedef unsigned char __u8;
typedef unsigned int __u32;
typedef int __s32;
typedef unsigned long long __u64;
typedef long long __s64;

#define __always_inline inline __attribute__((always_inline))

#endif
