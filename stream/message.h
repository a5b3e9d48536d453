/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* Bodies of the records that are not static data and not pages: one struct, one encoder, one decoder each. */
#ifndef VMF_STREAM_MESSAGE_H
#define VMF_STREAM_MESSAGE_H

#include <vmferry/handover.h>

#include "stream/record.h"

typedef struct {
    bool accepted;
    uint64_t features;
    uint32_t page_channels;
    char **texts; /* NULL-terminated; owned */
} VmfVerdict;
void vmf_verdict_clear(VmfVerdict *verdict);
bool vmf_verdict_send(VmfRecordWriter *writer, const VmfVerdict *verdict, GError **error);
bool vmf_verdict_decode(const VmfRecord *record, bool swap, VmfVerdict *out, GError **error);

/* TARGET_HOST: a name of 1 to VMF_HOST_NAME_MAX bytes. @name is newly allocated. */
bool vmf_target_host_send(VmfRecordWriter *writer, const char *name, GError **error);
bool vmf_target_host_decode(const VmfRecord *record, bool swap, char **name, GError **error);

/* TARGET_STATE: the id of the target's state directory, which is not zeros. */
bool vmf_target_state_send(VmfRecordWriter *writer, const uint8_t id[16], GError **error);
bool vmf_target_state_decode(const VmfRecord *record, uint8_t id[16], GError **error);

typedef struct {
    uint8_t session[16];
    uint32_t count;
    uint32_t epoch;
} VmfPageChannels;
bool vmf_page_channels_queue(VmfRecordWriter *writer, const VmfPageChannels *message, GError **error);
bool vmf_page_channels_decode(const VmfRecord *record, bool swap, VmfPageChannels *out, GError **error);

typedef struct {
    uint32_t block;
    uint64_t chunk;
    uint64_t data[VMF_WIRE_CHUNK_WORDS];
} VmfHint;
bool vmf_hint_queue(VmfRecordWriter *writer, const VmfHint *hint, GError **error);
bool vmf_hint_decode(const VmfRecord *record, bool swap, VmfHint *out, GError **error);

typedef struct {
    uint32_t block;
    uint64_t chunk;
    uint64_t sum;
} VmfAckEntry;
typedef struct {
    uint32_t epoch;
    uint32_t channel;
    uint64_t sequence;
    uint32_t n_entries;
} VmfAck;
bool vmf_ack_send(VmfRecordWriter *writer, const VmfAck *ack, const VmfAckEntry *entries, GError **error);
/* @entries gets a new array of VmfAckEntry. */
bool vmf_ack_decode(const VmfRecord *record, bool swap, VmfAck *ack, GArray **entries, GError **error);

/* ROUND */
bool vmf_round_queue(VmfRecordWriter *writer, uint32_t round, uint64_t pending_bytes, GError **error);

/* END_MARK, PING, PONG: one u64. */
bool vmf_u64_send(VmfRecordWriter *writer, uint32_t type, uint64_t value, GError **error);
bool vmf_u64_decode(const VmfRecord *record, bool swap, uint64_t *value, GError **error);

typedef struct {
    uint32_t id;
    uint32_t flags; /* VMF_SECTION_… */
    uint32_t part;
    const uint8_t *content;
    uint32_t length;
} VmfSection;
/* The body is added to the device sum. */
bool vmf_section_queue(VmfRecordWriter *writer, const VmfSection *section, XXH3_state_t *sum, GError **error);
bool vmf_section_decode(const VmfRecord *record, bool swap, VmfSection *out, GError **error);

typedef struct {
    uint64_t data, zero, hole; /* pages, first pass */
    uint64_t sum;
} VmfBlockSummary;
typedef struct {
    uint8_t token[VMF_TOKEN_SIZE];
    uint32_t flags; /* VMF_SWITCHOVER_… */
    uint64_t static_sum;
    uint64_t device_sum;
    uint32_t n_blocks;
    VmfBlockSummary *blocks; /* owned */
} VmfSwitchover;
void vmf_switchover_clear(VmfSwitchover *message);
bool vmf_switchover_send(VmfRecordWriter *writer, const VmfSwitchover *message, GError **error);
/* @n_blocks: how many there have to be. */
bool vmf_switchover_decode(const VmfRecord *record, bool swap, uint32_t n_blocks, VmfSwitchover *out, GError **error);

typedef struct {
    uint8_t token[VMF_TOKEN_SIZE];
    uint8_t state_directory[16];
    uint32_t flags; /* VMF_READY_… */
    uint64_t static_sum;
    uint64_t device_sum;
    uint32_t n_blocks;
    uint64_t *sums; /* owned */
} VmfReady;
void vmf_ready_clear(VmfReady *message);
bool vmf_ready_send(VmfRecordWriter *writer, const VmfReady *message, GError **error);
bool vmf_ready_decode(const VmfRecord *record, bool swap, uint32_t n_blocks, VmfReady *out, GError **error);

/* RUN, ABORT, QUERY, INQUIRE, CONFIRM, RUNNING: a token. */
bool vmf_token_send(VmfRecordWriter *writer, uint32_t type, const uint8_t token[VMF_TOKEN_SIZE], GError **error);
bool vmf_token_decode(const VmfRecord *record, uint8_t token[VMF_TOKEN_SIZE], GError **error);

/* REFUSED and NEVER (with a token), FAILED (@token NULL): the error's id and text. */
bool vmf_complaint_send(VmfRecordWriter *writer, uint32_t type, const uint8_t *token, const GError *why, GError **error);
/* @token NULL for FAILED. @id and @text are newly allocated. */
bool vmf_complaint_decode(const VmfRecord *record, bool swap, uint8_t *token, char **id, char **text, GError **error);

typedef struct {
    uint8_t token[VMF_TOKEN_SIZE];
    bool gap_known;
    bool not_started; /* the guest is the target's, paused: it could not be started */
    uint64_t guest_gap_ns;
} VmfReport;
bool vmf_report_send(VmfRecordWriter *writer, const VmfReport *report, GError **error);
bool vmf_report_decode(const VmfRecord *record, bool swap, VmfReport *out, GError **error);

/* On a channel of its own: QUERY, ABORT, INQUIRE or CONFIRM of @token, the only one that may be asked about there. */
bool vmf_question_send(VmfRecordWriter *writer, VmfQuestion question, const uint8_t token[VMF_TOKEN_SIZE], GError **error);
bool vmf_question_decode(const VmfRecord *record, const uint8_t token[VMF_TOKEN_SIZE], VmfQuestion *question, GError **error);

typedef struct {
    uint8_t token[VMF_TOKEN_SIZE];
    uint8_t state_directory[16]; /* of whoever answers */
    VmfAnswer answer;            /* never NONE */
} VmfAnswerMessage;
bool vmf_answer_send(VmfRecordWriter *writer, const VmfAnswerMessage *message, GError **error);
bool vmf_answer_decode(const VmfRecord *record, bool swap, VmfAnswerMessage *out, GError **error);

/* DISK_SYNC, and DISK_SYNCED that answers it. */
typedef struct {
    uint64_t cookie;
    uint32_t flags; /* VMF_DISK_SYNC_…; of an answer 0 */
    uint32_t n_disks;
    const uint32_t *disks; /* indexes of the copied ones, rising: the caller's */
    uint64_t *sums;        /* by place in @disks; owned where it was decoded */
} VmfDiskSync;
bool vmf_disk_sync_send(VmfRecordWriter *writer, uint32_t type, const VmfDiskSync *message, GError **error);
/* @n_disks and @disks: which there have to be. */
bool vmf_disk_sync_decode(const VmfRecord *record, bool swap, uint32_t n_disks, const uint32_t *disks, VmfDiskSync *out, GError **error);
void vmf_disk_sync_clear(VmfDiskSync *message);

/* BASE: what the disk has where the target's base is to have the same. */
typedef struct {
    uint32_t disk;
    bool is_zero;
    uint64_t offset, length; /* bytes, as they are in the record */
    uint32_t n_digests;      /* none where it is zero; at most VMF_BASE_GRANULES_MAX */
    uint64_t *digests;       /* owned where it was decoded */
} VmfDiskBase;
bool vmf_disk_base_send(VmfRecordWriter *writer, const VmfDiskBase *message, GError **error);
bool vmf_disk_base_decode(const VmfRecord *record, bool swap, VmfDiskBase *out, GError **error);
void vmf_disk_base_clear(VmfDiskBase *message);

/* A record that has to be empty. */
bool vmf_empty_check(const VmfRecord *record, GError **error);

#endif
