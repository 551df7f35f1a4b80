//! Batches as bytes.

use proptest::prelude::*;

use super::*;
use crate::Family;
use crate::expr::{Base, Verdict, reg32};
use crate::set::{Data, DataType};
use crate::wire::{Attributes, messages};

const TABLE: Table<'static> = Table { family: Family::Ip, name: "t" };

#[test]
fn a_batch_is_framed_numbered_and_acknowledged_at_its_end() {
    let mut batch = Batch::new();
    assert!(batch.is_empty());
    batch.add_table(TABLE, "");
    batch.delete_table(TABLE);
    let (bytes, acknowledged) = batch.into_bytes();
    assert_eq!(acknowledged, 2);
    let flags = |at: usize| u16::from_ne_bytes([bytes[at + 6], bytes[at + 7]]) & NLM_F_ACK != 0;
    let mut at = 0;
    let seen: Vec<_> = messages(&bytes)
        .map(|message| {
            let row = (message.kind, flags(at), message.sequence);
            at += 16 + message.body.len();
            row
        })
        .collect();
    assert_eq!(seen, [(0x10, false, 0), (0xa00, false, 1), (0xa02, true, 2), (0x11, false, 0)]);
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .chunks(4)
        .map(|word| word.iter().fold(String::new(), |text, byte| format!("{text}{byte:02x}")))
        .collect::<Vec<_>>()
        .join(" ")
}

/// `ip daddr 10.0.0.1 drop`, as the kernel takes it.
#[test]
#[cfg(target_endian = "little")]
fn a_rule_has_these_bytes() {
    let mut batch = Batch::new();
    let address = Expr::Payload { base: Base::Network, offset: 16, length: 4, to: 1 };
    let compare = Expr::Compare { from: 1, value: vec![10, 0, 0, 1], inverted: false };
    batch.add_rule(TABLE, "c", &[address, compare, Expr::Verdict(Verdict::Drop)]);
    let (bytes, _) = batch.into_bytes();
    let rule = messages(&bytes).nth(1).unwrap();
    expect_test::expect![[r"
        02000000 06000100 74000000 06000200 63000000 94000480 34000180 0c000100 7061796c 6f616400 24000280 08000100 00000001 08000200 00000001 08000300 00000010 08000400 00000004 2c000180 08000100 636d7000 20000280 08000100 00000001 08000200 00000000 0c000380 08000100 0a000001 30000180 0e000100 696d6d65 64696174 65000000 1c000280 08000100 00000000 10000280 0c000280 08000100 00000000"]]
    .assert_eq(&hex(rule.body));
}

#[test]
fn a_verdict_map_of_two_fields_is_described() {
    let spec = SetSpec::verdict_map("m", &[DataType::Ipv4Addr, DataType::InetService]);
    let mut writer = Writer::default();
    spec.write(&mut writer);
    let attributes = Attributes(&writer.bytes);
    let numbers: Vec<Option<u32>> = (3..=7).map(|kind| attributes.number(kind)).collect();
    assert_eq!(numbers, [Some(8), Some(7 << 6 | 0xd), Some(8), Some(0xffff_ff00), Some(16)]);
}

#[test]
fn intervals_of_several_fields_name_each_fields_length() {
    let mut spec = SetSpec::set("s", &[DataType::Ipv6Addr, DataType::InetProto]);
    spec.interval = true;
    let mut writer = Writer::default();
    spec.write(&mut writer);
    let attributes = Attributes(&writer.bytes);
    assert_eq!((attributes.number(3), attributes.number(5)), (Some(0x84), Some(20)));
    let concat = attributes.nested(9).unwrap().nested(2).unwrap();
    let lengths: Vec<_> = concat.map(|(_, field)| Attributes(field).number(1).unwrap()).collect();
    assert_eq!(lengths, [16, 1]);
}

#[test]
fn many_elements_are_many_messages_and_none_is_lost() {
    let elements: Vec<Element> = (0..10_000_u32).map(|n| Element::key(n.to_be_bytes().to_vec())).collect();
    let mut batch = Batch::new();
    batch.add_elements(TABLE, "s", &elements);
    let (bytes, count) = batch.into_bytes();
    assert!(count > 1);
    let read: Vec<Element> = messages(&bytes)
        .filter(|message| message.kind == 0xa0c)
        .flat_map(|message| message.attributes().nested(3).unwrap())
        .map(|(_, element)| Element::read(Attributes(element)).unwrap())
        .collect();
    assert_eq!(read, elements);
}

#[test]
fn registers_lie_behind_each_other() {
    assert_eq!((reg32(0), reg32(15)), (8, 23));
}

fn data() -> impl Strategy<Value = Option<Data>> {
    let bytes = prop::collection::vec(any::<u8>(), 1..24);
    let verdict = prop::sample::select(vec![
        Verdict::Accept,
        Verdict::Drop,
        Verdict::Return,
        Verdict::Jump("chain".into()),
        Verdict::Goto("pick-4".into()),
    ]);
    prop::option::of(prop_oneof![bytes.prop_map(Data::Value), verdict.prop_map(Data::Verdict)])
}

proptest! {
    /// What is written is read back, whatever it is.
    #[test]
    fn elements_round_trip(
        key in prop::collection::vec(any::<u8>(), 1..44),
        key_end in prop::option::of(prop::collection::vec(any::<u8>(), 1..44)),
        interval_end in any::<bool>(),
        data in data(),
        user_data in prop::collection::vec(any::<u8>(), 0..200),
    ) {
        let element = Element { key, key_end, interval_end, data, user_data };
        let mut writer = Writer::default();
        element.write(&mut writer, true);
        let (_, bytes) = Attributes(&writer.bytes).next().unwrap();
        prop_assert_eq!(Element::read(Attributes(bytes)), Some(element));
    }

    /// Whatever arrives, reading it ends without a panic.
    #[test]
    fn hostile_bytes_are_survived(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        for message in messages(&bytes) {
            let attributes = message.attributes();
            let _read = (message.error(), message.done(), Element::read(attributes));
        }
        let _read = Element::read(Attributes(&bytes));
    }
}
