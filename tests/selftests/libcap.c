// SPDX-License-Identifier: GPL-2.0-only
/* See sys/capability.h. */

#include <errno.h>
#include <stdlib.h>
#include <sys/capability.h>
#include <sys/syscall.h>
#include <unistd.h>

struct lab_cap {
	struct __user_cap_header_struct header;
	struct __user_cap_data_struct data[_LINUX_CAPABILITY_U32S_3];
};

cap_t cap_get_proc(void)
{
	cap_t caps = calloc(1, sizeof(*caps));

	if (!caps)
		return NULL;
	caps->header.version = _LINUX_CAPABILITY_VERSION_3;
	if (syscall(SYS_capget, &caps->header, caps->data)) {
		free(caps);
		return NULL;
	}
	return caps;
}

int cap_set_proc(cap_t caps)
{
	return syscall(SYS_capset, &caps->header, caps->data);
}

/* The 32 bits of a set that `value` is in; NULL and EINVAL if there is no such set or value. */
static __u32 *word(cap_t caps, cap_flag_t flag, cap_value_t value)
{
	struct __user_cap_data_struct *data;

	if (value < 0 || CAP_TO_INDEX(value) >= _LINUX_CAPABILITY_U32S_3) {
		errno = EINVAL;
		return NULL;
	}
	data = &caps->data[CAP_TO_INDEX(value)];
	switch (flag) {
	case CAP_EFFECTIVE:
		return &data->effective;
	case CAP_PERMITTED:
		return &data->permitted;
	case CAP_INHERITABLE:
		return &data->inheritable;
	}
	errno = EINVAL;
	return NULL;
}

int cap_clear_flag(cap_t caps, cap_flag_t flag)
{
	int i;

	for (i = 0; i < _LINUX_CAPABILITY_U32S_3; i++) {
		__u32 *bits = word(caps, flag, i * 32);

		if (!bits)
			return -1;
		*bits = 0;
	}
	return 0;
}

int cap_set_flag(cap_t caps, cap_flag_t flag, int count, const cap_value_t *values, cap_flag_value_t value)
{
	int i;

	for (i = 0; i < count; i++) {
		__u32 *bits = word(caps, flag, values[i]);

		if (!bits)
			return -1;
		if (value == CAP_SET)
			*bits |= CAP_TO_MASK(values[i]);
		else
			*bits &= ~CAP_TO_MASK(values[i]);
	}
	return 0;
}

int cap_free(void *caps)
{
	free(caps);
	return 0;
}
