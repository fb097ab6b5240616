//! The frames about dead letters.

use bytes::Bytes;

use super::golden;
use crate::domain::id::{Lane, Offset, PartitionIndex};
use crate::domain::time::WallMs;
use crate::wire::letters::*;
use crate::wire::topic::{decode_list, encode_list};

fn place() -> LetterPlace {
    LetterPlace {
        partition: PartitionIndex(3),
        offset: Offset(300),
        end: Some(Offset(9)),
    }
}

fn select() -> LetterSelection {
    LetterSelection {
        partition: Some(PartitionIndex(3)),
        group: Some("g".into()),
        origin: Some("o".into()),
        ids: vec!["i".into()],
    }
}

pub(super) fn requests() -> Vec<Bytes> {
    vec![
        golden(
            ListDeadLetters {
                topic: "t".into(),
                select: select(),
                from: Some(place()),
                max: 7,
            },
            r"\x84\xa5topic\xa1t\xa6select\x84\xa9partition\x03\xa5group\xa1g\xa6origin\xa1o\xa3ids\x91\xa1i\xa4from\x83\xa9partition\x03\xa6offset\xcd\x01,\xa3end\t\xa3max\x07",
        ),
        golden(
            SettleDeadLetters {
                topic: "t".into(),
                select: LetterSelection::default(),
                from: None,
                max: 0,
                action: LetterAction::Redrive(Some("o".into())),
            },
            r"\x85\xa5topic\xa1t\xa6select\x84\xa9partition\xc0\xa5group\xc0\xa6origin\xc0\xa3ids\x90\xa4from\xc0\xa3max\x00\xa6action\x81\xa7redrive\xa1o",
        ),
        golden(
            SettleDeadLetters {
                topic: "t".into(),
                select: LetterSelection::default(),
                from: None,
                max: 1,
                action: LetterAction::Purge,
            },
            r"\x85\xa5topic\xa1t\xa6select\x84\xa9partition\xc0\xa5group\xc0\xa6origin\xc0\xa3ids\x90\xa4from\xc0\xa3max\x01\xa6action\xa5purge",
        ),
    ]
}

pub(super) fn answers() -> Vec<Bytes> {
    vec![
        golden(
            DeadLettersOk {
                next: Some(place()),
            },
            r"\x81\xa4next\x83\xa9partition\x03\xa6offset\xcd\x01,\xa3end\t",
        ),
        golden(
            DeadLettersSettled {
                done: 5,
                next: None,
            },
            r"\x82\xa4done\x05\xa4next\xc0",
        ),
    ]
}

#[test]
fn lists_of_letters_are_these_bytes() {
    let origin = LetterOrigin {
        group: "g".into(),
        reason: "r".into(),
        attempts: 16,
        topic: "o".into(),
        partition: PartitionIndex(1),
        lane: Lane(2),
        offset: Offset(300),
    };
    let letter = DeadLetterInfo {
        partition: PartitionIndex(3),
        offset: Offset(4),
        id: "i".into(),
        time: WallMs(9),
        key: Some(serde_bytes::ByteBuf::from(vec![255])),
        value_bytes: 70,
        origin: Some(origin),
    };
    let stray = DeadLetterInfo::default();
    let list = encode_list(&[letter.clone(), stray.clone()]);
    assert_eq!(
        list.escape_ascii().to_string(),
        r"\x92\x87\xa9partition\x03\xa6offset\x04\xa2id\xa1i\xa4time\t\xa3key\xc4\x01\xff\xabvalue_bytesF\xa6origin\x87\xa5group\xa1g\xa6reason\xa1r\xa8attempts\x10\xa5topic\xa1o\xa9partition\x01\xa4lane\x02\xa6offset\xcd\x01,\x87\xa9partition\x00\xa6offset\x00\xa2id\xa0\xa4time\x00\xa3key\xc0\xabvalue_bytes\x00\xa6origin\xc0"
    );
    assert_eq!(decode_list(&list), Ok(vec![letter, stray]));
    let fault = LetterFault {
        partition: PartitionIndex(3),
        offset: Offset(4),
        code: "c".into(),
        message: "m".into(),
    };
    let list = encode_list(std::slice::from_ref(&fault));
    assert_eq!(
        list.escape_ascii().to_string(),
        r"\x91\x84\xa9partition\x03\xa6offset\x04\xa4code\xa1c\xa7message\xa1m"
    );
    assert_eq!(decode_list(&list), Ok(vec![fault]));
}
