/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * As much of libcap as the kernel's selftests for mounts call, over capget(2) and capset(2). They are linked statically, and a static
 * libcap is a package of its own on some distributions and missing on others.
 */
#ifndef LAB_SYS_CAPABILITY_H
#define LAB_SYS_CAPABILITY_H

#include <linux/capability.h>

typedef int cap_value_t;
typedef struct lab_cap *cap_t;

typedef enum { CAP_EFFECTIVE, CAP_PERMITTED, CAP_INHERITABLE } cap_flag_t;
typedef enum { CAP_CLEAR, CAP_SET } cap_flag_value_t;

/* The calling thread's capabilities; NULL and errno if it fails. Free it with cap_free(). */
cap_t cap_get_proc(void);

/* Makes them the calling thread's. 0, or -1 and errno, as the two below. */
int cap_set_proc(cap_t caps);

/* Clears one of the three sets. */
int cap_clear_flag(cap_t caps, cap_flag_t flag);

/* Clears or sets some capabilities in one of the three sets. */
int cap_set_flag(cap_t caps, cap_flag_t flag, int count, const cap_value_t *values, cap_flag_value_t value);

int cap_free(void *caps);

#endif
