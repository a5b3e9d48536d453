/* SPDX-License-Identifier: LGPL-2.1-or-later */
/* One question about a token, on a channel of its own. */
#include <vmferry/handover.h>

#include <string.h>

#include <vmferry/error.h>

#include "stream/channel.h"
#include "stream/clock.h"
#include "stream/header.h"
#include "stream/message.h"

const char *vmf_answer_name(VmfAnswer answer)
{
    static const char *const names[] = {"none", "running", "started", "never", "held", "unknown"};

    G_STATIC_ASSERT(G_N_ELEMENTS(names) == VMF_ANSWER_N);
    return names[answer];
}

static bool send_question(VmfChannel *channel, VmfStreamFormat format, VmfQuestion question, const uint8_t token[16], GError **error)
{
    VmfRecordWriter *writer = vmf_record_writer_new(channel, format);
    uint8_t wire[VMF_PREAMBLE_SIZE];
    VmfTokenPreamble preamble;

    memcpy(preamble.token, token, sizeof(preamble.token));
    vmf_token_preamble_encode(&preamble, &format, wire);
    bool sent = vmf_record_write_raw(writer, wire, sizeof(wire), error) && vmf_question_send(writer, question, token, error) &&
                vmf_record_flush(writer, error);
    vmf_record_writer_free(writer);
    return sent;
}

static bool read_answer(VmfChannel *channel, VmfStreamFormat format, int64_t deadline_ns, VmfAnswerMessage *message, GError **error)
{
    VmfRecordReader *reader = vmf_record_reader_new(channel, format);
    VmfRecord record;

    reader->deadline_ns = deadline_ns;
    bool read = vmf_record_read_known(reader, &record, error);
    if (read && record.type != VMF_RECORD_ANSWER) {
        vmf_record_set_order_error(error, record.type, "where ANSWER has to be");
        read = false;
    }
    read = read && vmf_answer_decode(&record, format.swap, message, error);
    vmf_record_reader_free(reader);
    return read;
}

/* Whose word it is: of this token, and from the directory that the offer named. */
static bool counts(const VmfAnswerMessage *message, VmfQuestion question, const uint8_t token[16], const uint8_t peer_id[16],
                   GError **error)
{
    static const uint8_t anybody[16];

    if (memcmp(message->token, token, sizeof(message->token)) != 0) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "record ANSWER: of another token");
        return false;
    }
    /* Every other question leaves something behind that the answer can name. */
    if (message->answer == VMF_ANSWER_UNKNOWN && question != VMF_QUESTION_INQUIRE) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_RECORD_BODY, "record ANSWER: unknown, to a question that is not INQUIRE");
        return false;
    }
    if (question == VMF_QUESTION_INQUIRE && memcmp(peer_id, anybody, sizeof(anybody)) == 0)
        return true;
    if (memcmp(message->state_directory, peer_id, sizeof(message->state_directory)) == 0 &&
        memcmp(peer_id, anybody, sizeof(anybody)) != 0)
        return true;
    g_set_error(error, VMF_ERROR, VMF_ERROR_PEER, "answer: it comes from another state directory than the offer named, and does not count");
    return false;
}

VmfAnswer vmf_handover_ask(VmfConnector *connector, VmfQuestion question, const uint8_t token[16], const uint8_t peer_id[16],
                           int64_t timeout_ns, GError **error)
{
    VmfStreamFormat format = {.version = VMF_STREAM_VERSION_MAX};
    int64_t deadline_ns = vmf_now_ns() + timeout_ns;
    VmfAnswerMessage message = {.answer = VMF_ANSWER_NONE};

    if (vmf_connector_is_one_way(connector)) {
        g_set_error(error, VMF_ERROR, VMF_ERROR_UNSUPPORTED, "question: there is no way back on which to answer");
        return VMF_ANSWER_NONE;
    }
    g_autoptr(VmfChannel) channel = vmf_connector_open(connector, timeout_ns, error);

    if (!channel || !send_question(channel, format, question, token, error) ||
        !read_answer(channel, format, deadline_ns, &message, error) || !counts(&message, question, token, peer_id, error))
        return VMF_ANSWER_NONE;
    return message.answer;
}
