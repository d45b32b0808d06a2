// What stands behind a JavaScript Session: who keeps whom alive, and how events get to JavaScript.
//
// Ownership: while mounted, the binding holds strong references to the JavaScript Session and its
// Template, and a threadsafe function that keeps the process alive. All of it goes when the session
// has closed. What JavaScript forgets is ended by a cleanup hook of its environment, and at
// exit(3).
//
// Everything runs on the JavaScript thread, except the SessionEvents.
#pragma once

#include <node_api.h>

#include <memory>
#include <string>
#include <utility>

#include "session.h"
#include "template_napi.h"
#include "transport_dev.h"

namespace firstlight {

struct Event {
  enum Kind { kWanted, kTimeout, kClosed } kind;
  uint32_t content = 0, first = 0, last = 0;
  double waited_ms = 0;
  std::string error;
};

class SessionBinding : public SessionEvents {
 public:
  napi_env env = nullptr;
  MountOptions mount;
  uint32_t wait_timeout_ms = 0;
  TemplateBinding* tree = nullptr;
  napi_ref self = nullptr;         // strong from the start until the last event
  napi_ref tree_object = nullptr;  // strong as long as the session exists
  napi_ref callbacks[3] = {};      // onWanted, onTimeout, onClosed
  enum { kNew, kStarting, kMounted, kClosed } state = kNew;
  std::shared_ptr<AccessTrace> trace = std::make_shared<AccessTrace>();
  OpenMode opens = OpenMode::kSeen;        // as told last
  std::shared_ptr<UpcallChannel> channel;  // of a writable session, from the start to the end
  std::shared_ptr<Session> session;        // while mounted; pool jobs hold their own copy

  ~SessionBinding() override;

  // SessionEvents: native threads.
  void wanted(uint32_t content, uint32_t first, uint32_t last) override;
  void timed_out(uint32_t content, double waited_ms) override;
  void closed(const std::string& error) override;

  /** Makes the way for events to JavaScript; false where Node.js cannot. Before the session is
   * made. */
  bool open_channel();
  /** The pool has mounted. */
  void began(std::shared_ptr<Session> started);
  /** The session has ended, or never began. */
  void let_go();
  /** Lets go at once where the session has ended, instead of when its event comes. */
  void hear_if_closed();
  /** Counters of the running session, or what they were at its end. */
  SessionStats stats() const { return session == nullptr ? last_ : session->counters().read(); }

 private:
  static void deliver(napi_env env, napi_value, void* context, void* data);
  static void channel_gone(napi_env env, void*, void* context);
  static void forgotten(void* data);
  void post(Event* event);
  void hear_closed(std::unique_ptr<Event> event);
  void close_channel();

  napi_threadsafe_function channel_ = nullptr;
  std::unique_ptr<Event> closed_early_;
  SessionStats last_;
};

/** Of a JavaScript Session; throws and returns nullptr where it is none. */
SessionBinding* unwrap_session(napi_env env, napi_value self);

// session_watch_napi.cc: methods of Session.
napi_value watch_opens(napi_env env, napi_callback_info info);
napi_value unwatch_opens(napi_env env, napi_callback_info info);
napi_value forget_reads(napi_env env, napi_callback_info info);

}  // namespace firstlight
